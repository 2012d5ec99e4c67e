"""Generate the demo data set: what does a customer's message ask the shop to do?

Each row is one short message with the action that its writer wants now: ``refund``,
``exchange``, ``cancel``, ``track`` or ``invoice``. Most messages mention a second action that
the writer does not want, so that the topics alone do not give the label away. A row has one of
three shapes (``SHAPES``), from easy to hard:

- a bare request: "Could you refund the mug?";
- a request with an aside, which declines the second action, calls it settled or leaves it to
  somebody else: "Please do not cancel the kettle, but could you refund the mug?";
- a choice from an offer of two, of which only the order tells the wanted one: "You can either
  cancel the kettle or refund the mug. The latter suits me better."

Every clause goes with every action, so that no clause belongs to a class. Contractions, a
greeting and the odd typo come last. Each pair of a wanted and an unwanted wording belongs to
one split: validation and test combine wordings as training never does. Nor does a text occur
twice, even with another greeting, contraction or typo.

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
SPLIT_ROWS = {"train": 2000, "validation": 300, "test": 400}

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
        "scrap my order for the {item}",
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
    "it is time for you to {action}",
    "do not forget to {action}",
    "I cannot wait any longer for you to {action}",
    "I will not be happy until you {action}",
    "is it not possible to {action}",
)

ASIDES = (
    "please do not {action}",
    "you need not {action}",
    "there is no need to {action}",
    "I would not like you to {action}",
    "I am not asking you to {action}",
    "I was glad to see you {action}",
    "you kindly offered to {action} and I declined",
    "I nearly asked you to {action}",
    "my {person} once asked you to {action}",
    "my {person} was happy to see you {action}",
    "it is too late to {action}",
    "last week I needed you to {action}",
)

OFFERS = (
    "you could {first} or {last}",
    "you can either {first} or {last}",
    "you offered to {first} or {last}",
    "it says here that you can {first} or {last}",
)

CHOICES = (
    "please do the {place}",
    "I would choose the {place}",
    "the {place} suits me better",
    "let us go for the {place}",
)

FIRST = ("former", "first")
LAST = ("latter", "second")

LAYOUTS = (
    "{request}. {aside}.",
    "{aside}. {request}.",
    "{aside}, but {request}.",
    "{aside}; {request}.",
    "{request} ({aside}).",
    "{request} rather than {other}.",
    "rather than {other}, {request}.",
)

SHAPES = {"request": 38, "aside": 32, "choice": 30}
"""How many messages in a hundred have each shape."""

# fmt: off
ITEMS = (
    "kettle", "teapot", "toaster", "blender", "desk lamp", "lantern", "rug", "cushion",
    "blanket", "armchair", "bookshelf", "mirror", "clock", "radio", "backpack", "suitcase",
    "raincoat", "jumper", "scarf", "hat", "umbrella", "bicycle helmet", "tent", "torch",
    "frying pan", "chopping board", "coffee mug", "picture frame", "garden hose", "watering can",
    "bird feeder", "jigsaw", "chess set", "violin", "keyboard", "printer",
)
COLOURS = (
    "red", "blue", "green", "grey", "black", "white", "yellow", "purple",
)
PEOPLE = (
    "sister", "brother", "neighbour", "colleague", "flatmate", "cousin", "aunt", "uncle",
    "daughter", "landlord",
)
# fmt: on
GREETINGS = ("hello, ", "hi there, ", "good morning, ", "dear team, ")
CONTRACTIONS = {
    "do not": "don't",
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
    """Give each pair of a wanted action and one of another class to one split.

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


def name_things(wording: str, rng: random.Random) -> str:
    """Put nouns of its own into a wording."""
    return wording.format(item=rng.choice(ITEMS), colour=rng.choice(COLOURS))


def compose(asked: str, other: str, rng: random.Random) -> str:
    """Compose a text that asks for one action and, as a rule, mentions another.

    Args:
        asked: The action that the writer wants.
        other: An action that the writer does not want.
        rng: The source of randomness.

    Returns:
        The text with sentences ended by full stops, not yet capitalised.
    """
    (shape,) = rng.choices(list(SHAPES), list(SHAPES.values()))
    request = rng.choice(REQUESTS).format(action=asked)
    if shape == "request":
        return f"{request}."
    if shape == "choice":
        offer = rng.choice(OFFERS)
        first, last, place = rng.choice([(asked, other, FIRST), (other, asked, LAST)])
        choice = rng.choice(CHOICES).format(place=rng.choice(place))
        return f"{offer.format(first=first, last=last)}. {choice}."
    aside = rng.choice(ASIDES).format(action=other, person=rng.choice(PEOPLE))
    return rng.choice(LAYOUTS).format(request=request, aside=aside, other=other)


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
    return misspell(text, rng) if rng.random() < 0.06 else text


def misspell(text: str, rng: random.Random) -> str:
    """Swap two neighbouring letters inside one long word, if there is one."""
    words = re.findall(r"[A-Za-z]{5,}", text)
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(1, len(word) - 2)
    typo = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return text.replace(word, typo, 1)


def messages(
    pairs: list[tuple[Action, Action]], seen: set[str], rng: random.Random
) -> Iterator[dict[str, str]]:
    """Compose rows without end, the classes in turn.

    Args:
        pairs: The pairs of a wanted and an unwanted action that may share a row.
        seen: The texts composed so far, before polishing; a text in it is not used again.
        rng: The source of randomness.

    Yields:
        Rows with ``text`` and ``label``.
    """
    for label in cycle(ACTIONS):
        text = ""
        while not text or text in seen:
            asked, other = rng.choice([pair for pair in pairs if pair[0][0] == label])
            text = compose(name_things(asked[1], rng), name_things(other[1], rng), rng)
        seen.add(text)
        yield {"text": polish(text, rng), "label": label}


def main() -> None:
    """Write the three splits."""
    rng = random.Random(SEED)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for split, pairs in split_pairs(rng).items():
        rows = list(islice(messages(pairs, seen, rng), SPLIT_ROWS[split]))
        rng.shuffle(rows)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (OUTPUT / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
