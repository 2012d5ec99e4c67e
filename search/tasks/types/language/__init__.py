"""Tasks whose model writes text, learnt token by token.

| file | what it holds |
|---|---|
| base | `LanguageTask`: the loss of tokens, and scores of losses and of written texts |
| causal_lm, chat | completions, texts, conversations: each token learnt from those before it |
| seq2seq, languages | a source that is read, and a target that is written; the codes of their languages |
| packing | several texts in one row |
| generation | what a model writes after prompts, in batches |
| text_metrics | BLEU and ROUGE-L against one reference or several |
"""
