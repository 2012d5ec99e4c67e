"""Generate the demo data set: what does a customer's message ask the shop to do?

Each row is one short message with the action that its writer wants now: ``refund``,
``exchange``, ``cancel``, ``track`` or ``invoice``. Nearly every message also mentions one or
two other actions, which its writer declines, calls settled, or reports of somebody else. The
topics alone therefore do not give the label away: "please do not cancel the kettle, but could
you refund the mug?" is about two actions and asks for one.

A row is composed in four steps. Its label and its asides get a wording each (``ACTIONS``); the
label's wording goes into a clause that asks for it (``REQUESTS``), the other wordings into
clauses that do not (``ASIDES``); a layout (``LAYOUTS``) puts the clauses in order; and at last
come contractions, a greeting, punctuation and the odd typo. All clauses work with all actions,
so that no clause belongs to a class. Each pair of a requested wording and a wording beside it
belongs to one split only: validation and test hold combinations that training never shows.

The script needs nothing but the standard library, and its output is the same on each run::

    python examples/make_demo_data.py

It writes ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl`` to ``examples/demo``, one
object with ``text`` and ``label`` per line.
"""

import json
import random
import re
from collections.abc import Iterator
from itertools import cycle, islice, product
from pathlib import Path

SEED = 20
OUTPUT = Path(__file__).parent / "demo"
SPLIT_ROWS = {"train": 2400, "validation": 400, "test": 400}

ACTIONS = {
    "refund": (
        "refund the {item}",
        "reimburse me for the {item}",
        "pay me back for the {item}",
        "return my money for the {item}",
        "credit my card for the {item}",
    ),
    "exchange": (
        "exchange the {item}",
        "swap the {item} for a {colour} one",
        "replace the {item}",
        "change the {item} for a {colour} one",
        "trade the {item} for another model",
    ),
    "cancel": (
        "cancel the {item}",
        "call off the order for the {item}",
        "take the {item} off my order",
        "stop the order for the {item}",
        "scrap my order of the {item}",
    ),
    "track": (
        "track the {item}",
        "find out where the {item} is",
        "check when the {item} arrives",
        "look up the delivery of the {item}",
        "see how far the {item} has travelled",
    ),
    "invoice": (
        "invoice me for the {item}",
        "email the receipt for the {item}",
        "print the bill for the {item}",
        "write out an invoice for the {item}",
        "send the paperwork for the {item}",
    ),
}

REQUESTS = (
    "please {action}",
    "could you {action}",
    "can you {action} today",
    "would you kindly {action}",
    "I would like you to {action}",
    "I need you to {action}",
    "I am asking you to {action}",
    "it is time to {action}",
    "do not forget to {action}",
    "I cannot wait for you to {action}",
    "I will not be happy until you {action}",
    "is it not possible to {action}",
)

ASIDES = (
    "please do not {action}",
    "you need not {action}",
    "there is no need to {action}",
    "I would not like you to {action}",
    "I am not asking you to {action}",
    "you did already {action}",
    "thank you for offering to {action}, but no",
    "I was going to ask you to {action} and decided against it",
    "my {person} asked you to {action}",
    "my {person} was happy to see you {action}",
    "it is too late to {action}",
    "last week I needed you to {action}",
)

LAYOUTS = (
    "{request}. {aside}.",
    "{aside}. {request}.",
    "{request}, but {aside}.",
    "{aside}, but {request}.",
    "{request}; {aside}.",
    "{aside}; {request}.",
    "{request} rather than {other}.",
    "rather than {other}, {request}.",
    "{aside}. {request}, but {second}.",
    "{aside}, and {second}. {request}.",
)

ITEMS = (
    "kettle teapot toaster blender desk_lamp lantern rug cushion blanket armchair bookshelf mirror "
    "clock radio backpack suitcase raincoat jumper scarf hat umbrella bicycle_helmet tent torch "
    "frying_pan chopping_board coffee_mug picture_frame garden_hose watering_can bird_feeder "
    "jigsaw chess_set violin keyboard printer"
).split()
COLOURS = "red blue green grey black white yellow purple".split()
PEOPLE = "sister brother neighbour colleague flatmate cousin aunt uncle daughter landlord".split()
GREETINGS = ("hello, ", "hi there, ", "good morning, ", "dear team, ")
CONTRACTIONS = {
    "do not": "don't",
    "did not": "didn't",
    "cannot": "can't",
    "need not": "needn't",
    "will not": "won't",
    "I would": "I'd",
    "I am": "I'm",
    "it is": "it's",
    "there is": "there's",
}
QUESTION = re.compile(r"\b((could|can|would) you|is it not)\b", re.IGNORECASE)

Action = tuple[str, str]
"""A class name and one wording of its action."""


def split_pairs(rng: random.Random) -> dict[str, list[tuple[Action, Action]]]:
    """Give each pair of a requested action and one of another class to one split.

    Args:
        rng: The source of randomness.

    Returns:
        The pairs of each split, their shares in proportion to the splits' rows.
    """
    actions = [(label, wording) for label, wordings in ACTIONS.items() for wording in wordings]
    pairs = [(asked, other) for asked, other in product(actions, actions) if asked[0] != other[0]]
    rng.shuffle(pairs)
    total = sum(SPLIT_ROWS.values())
    remaining = iter(pairs)
    return {
        split: list(islice(remaining, len(pairs) * rows // total))
        for split, rows in SPLIT_ROWS.items()
    }


def fill(clause: str, wording: str, rng: random.Random) -> str:
    """Put a wording into a clause, with nouns of its own."""
    item, colour, person = rng.choice(ITEMS), rng.choice(COLOURS), rng.choice(PEOPLE)
    action = wording.format(item=item.replace("_", " "), colour=colour)
    return clause.format(action=action, person=person)


def polish(text: str, rng: random.Random) -> str:
    """Make composed clauses read as a message: contractions, greeting, sentences, a typo."""
    for long, short in CONTRACTIONS.items():
        if rng.random() < 0.5:
            text = text.replace(long, short)
    if rng.random() < 0.2:
        text = rng.choice(GREETINGS) + text
    sentences = [
        sentence[0].upper() + sentence[1:] + ("?" if QUESTION.search(sentence) else ".")
        for sentence in text.removesuffix(".").split(". ")
    ]
    text = " ".join(sentences)
    return misspell(text, rng) if rng.random() < 0.1 else text


def misspell(text: str, rng: random.Random) -> str:
    """Swap two neighbouring letters inside one long word."""
    word = rng.choice(re.findall(r"[A-Za-z]{5,}", text))
    at = rng.randrange(1, len(word) - 2)
    typo = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return text.replace(word, typo, 1)


def messages(pairs: list[tuple[Action, Action]], rng: random.Random) -> Iterator[dict[str, str]]:
    """Compose rows without end, the classes in turn.

    Args:
        pairs: The pairs of a requested action and another one that may share a row.
        rng: The source of randomness.

    Yields:
        Rows with ``text`` and ``label``.
    """
    for label in cycle(ACTIONS):
        asked, other = rng.choice([pair for pair in pairs if pair[0][0] == label])
        thirds = [last for first, last in pairs if first == asked and last[0] != other[0]]
        layout = rng.choice(LAYOUTS)
        if "{second}" in layout and not thirds:
            continue
        text = layout.format(
            request=fill(rng.choice(REQUESTS), asked[1], rng),
            aside=fill(rng.choice(ASIDES), other[1], rng),
            other=fill("{action}", other[1], rng),
            second=fill(rng.choice(ASIDES), rng.choice(thirds)[1], rng) if thirds else "",
        )
        yield {"text": polish(text, rng), "label": label}


def main() -> None:
    """Write the three splits, no text twice."""
    rng = random.Random(SEED)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for split, pairs in split_pairs(rng).items():
        fresh = (row for row in messages(pairs, rng) if row["text"].lower() not in seen)
        rows = []
        for row in islice(fresh, SPLIT_ROWS[split]):
            seen.add(row["text"].lower())
            rows.append(row)
        rng.shuffle(rows)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (OUTPUT / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
