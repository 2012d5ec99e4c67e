"""Languages of multilingual tokenizers: what source and target are marked with, and how a decoder begins."""

from __future__ import annotations

import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForSeq2SeqLM,
    M2M100Config,
    MBart50Tokenizer,
    MBartConfig,
    MBartTokenizer,
    NllbTokenizer,
    set_seed,
)

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.task import batches, load_task
from sparsearch.search.tasks.types.language.generation import generate
from tests.helpers.language_model import write_rows
from tests.helpers.seq2seq import ending_tokenizer

ROWS = [{"en": "ask the colour", "ro": "red"}, {"en": "ask", "ro": "is seven two"}]
WORDS = [f"▁{word}" for row in ROWS for text in row.values() for word in text.split()]
SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 24,
}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
LETTERS = sorted(set("".join(WORDS)))
PIECES = [(token, 0.0) for token in [*SPECIAL, *dict.fromkeys(WORDS), "en_XX", "ro_RO"]]
LANGUAGES = {
    "mbart": ("en_XX", "ro_RO"),
    "mbart50": ("en_XX", "ro_RO"),
    "nllb": ("eng_Latn", "ron_Latn"),
}


def tokenizer_of(name):
    if name == "nllb":  # its pieces are letters
        vocab = {token: i for i, token in enumerate([*SPECIAL, *LETTERS])}
        return NllbTokenizer(vocab=vocab, extra_special_tokens=list(LANGUAGES["nllb"]))
    return {"mbart": MBartTokenizer, "mbart50": MBart50Tokenizer}[name](vocab=list(PIECES))


def model_of(name, tokenizer):
    """mBART's decoder starts with the language, that of the others with the token of end."""
    set_seed(0)
    config = (M2M100Config if name == "nllb" else MBartConfig)(
        vocab_size=len(tokenizer),
        decoder_start_token_id=None if name == "mbart" else 2,
        tie_word_embeddings=False,
        **SIZES,
    )
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # random models repeat themselves
            parameter.mul_(20 if parameter.dim() > 1 else 1)
        model.lm_head.weight[tokenizer.all_special_ids] = 0  # and write words
    return model


def load(folder, tokenizer, languages, **settings):
    section = {
        "type": "seq2seq",
        "data": write_rows(folder, dict.fromkeys(("train", "validation", "test"), ROWS)),
        "source": "en",
        "target": "ro",
        **dict(zip(("source_language", "target_language"), languages, strict=False)),
    }
    return load_task(TaskConfig.model_validate(section | settings), folder, tokenizer, 24)


@pytest.mark.parametrize("name", LANGUAGES)
def test_loss_and_texts_are_those_of_transformers(name, tmp_path):
    tokenizer, theirs = tokenizer_of(name), tokenizer_of(name)
    model, languages = model_of(name, theirs), LANGUAGES[name]
    task = load(tmp_path, tokenizer, languages, metric="bleu", max_new_tokens=6)
    task.behaviour.check_rows(model, task)
    theirs.src_lang, theirs.tgt_lang = languages
    code = theirs.convert_tokens_to_ids(languages[1])
    begins = {"decoder_start_token_id" if name == "mbart" else "forced_bos_token_id": code}
    found = generate(task, model, task.test, task.behaviour.prompts(task.test), "fp32")
    for batch in batches(task.train, 1, torch.device("cpu")):
        row = int(batch["rows"])
        texts = ROWS[row]
        inputs = theirs(texts["en"], text_target=texts["ro"], return_tensors="pt")
        assert torch.equal(batch["input_ids"], inputs["input_ids"])
        loss = task.behaviour.loss(model, batch, "fp32")
        assert loss.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-5)
        del inputs["labels"]
        written = model.generate(**inputs, **begins, max_new_tokens=6, forced_eos_token_id=None)
        if name != "mbart":
            assert written[0, 1] == code
        assert (
            found[row]
            and found[row] == theirs.decode(written[0], skip_special_tokens=True).strip()
        )


@pytest.mark.parametrize(
    ("name", "languages", "message", "hint"),
    [
        ("mbart", (), "marks each text with its language", "ar_AR and cs_CZ"),
        ("nllb", (), "marks each text with its language", "set task.source_language"),
        ("mbart", ("en_XX", "ro"), "task.target_language is 'ro', which is no", "ro_RO"),
        ("nllb", ("english", "ron_Latn"), "task.source_language is 'english'", "eng_Latn"),
        ("mbart50", ("red", "ro_RO"), "task.source_language is 'red'", "of its 52 codes"),
    ],
)
def test_missing_and_unknown_languages_are_refused(name, languages, message, hint, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, tokenizer_of(name), languages)
    assert hint in caught.value.hint


def test_languages_for_a_tokenizer_without_any_are_refused(tmp_path):
    with pytest.raises(DataError, match="has no languages") as caught:
        load(tmp_path, ending_tokenizer(), ("en_XX", "ro_RO"))
    assert "remove task.source_language" in caught.value.hint


def test_languages_go_together(tmp_path):
    with pytest.raises(ValueError, match="source_language and target_language go together"):
        load(tmp_path, ending_tokenizer(), ("en_XX",))


class Doubled(NllbTokenizer):
    """Marks a target by the token of end and the language, as SeamlessM4T does."""

    def set_tgt_lang_special_tokens(self, lang):
        super().set_tgt_lang_special_tokens(lang)
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"</s> {lang} $A </s>",
            special_tokens=[("</s>", self.eos_token_id), (lang, self.cur_lang_code)],
        )


def test_targets_that_are_marked_in_another_way_are_refused(tmp_path):
    with pytest.raises(DataError, match="'</s>', 'ron_Latn', '</s>'.*is not known here"):
        load(tmp_path, Doubled(), LANGUAGES["nllb"])
