"""Spectral units on directions that nobody has to store."""

import pytest
import torch

from sparsearch.errors import StructureError
from sparsearch.results.export.export import export
from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import HEAD, load_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.calibration.calibrate import calibrate
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.spectral.directions import of_weight
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.conftest import make_inputs, make_model
from tests.helpers.exported import train_on

OPTIONS = {"block": 2, "max_blocks": 3}


def structure_of(model, **options):
    space = build_space(model, kinds={"spectral": OPTIONS | options})
    return make_structure(space, space.candidates[::2], identify(model), "classification")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("directions", ["weight", "seed"])
def test_values_alone_are_stored_and_another_process_makes_the_same_directions(
    family, directions, randomise
):
    model, again, inputs = make_model(family), make_model(family), make_inputs()
    plain = model(**inputs).logits
    structure = structure_of(model, directions=directions)
    attach(model, structure)
    assert torch.equal(model(**inputs).logits, plain)
    randomise(model)
    weights = weights_of(model)
    own = {n: t for n, t in weights.items() if not n.startswith(HEAD)}
    assert all(name.endswith(".values") for name in own)
    assert structure.bytes == sum(t.nbytes for t in own.values()) == 4 * structure.trainable_params
    expected = model(**inputs).logits
    assert not torch.equal(expected, plain)
    attach(again, structure)
    load_weights(again, weights)
    assert torch.equal(again(**inputs).logits, expected)

    def no_loss():
        raise AssertionError("nothing waits for a task")
        yield

    calibrate(detach(again), no_loss())


def test_blocks_of_a_position_lie_on_the_directions_of_larger_units():
    """Whatever the size of the unit: the search's unit has all blocks, the trial's some."""
    model = make_model("bert")
    for directions in ("weight", "seed"):
        space = build_space(model, kinds={"spectral": OPTIONS | {"directions": directions}})
        found = []
        for count in (1, 3):
            chosen = space.candidates[:count]
            attach(model, make_structure(space, chosen, identify(model), "classification"))
            (unit,) = attachment_of(model).units.values()
            found.append((unit.left.clone(), unit.right.clone()))
            detach(model)
        (left, right), (all_left, all_right) = found
        assert torch.equal(left, all_left[:, :2]) and torch.equal(right, all_right[:2])
        assert left.float().norm(dim=0).mean() == pytest.approx(1, abs=0.3)


def test_the_weights_directions_are_its_leading_ones():
    weight = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.tensor([9.0, 7.0, 5.0, 0.1, 0.1])
    )
    left, right = (side.double() for side in of_weight(weight, 3))
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    assert torch.allclose((u[:, :3].T @ left).abs(), torch.eye(3).double(), atol=0.02)
    assert torch.allclose((v[:3] @ right.T).abs(), torch.eye(3).double(), atol=0.02)


def test_the_task_chooses_by_default():
    assert make_kind("spectral", {}).aligns and make_kind("spectral", {}).set_options == {}
    assert not make_kind("spectral", {"directions": "seed"}).aligns


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["peft", "checkpoint"])
def test_exports_hold_the_directions_that_were_not_stored(tiny_folder, randomise, tmp_path, to):
    kinds = {"spectral": OPTIONS | {"directions": "weight", "bits": 8}}
    case = train_on(tiny_folder, kinds, randomise, pad=0)
    report = export(case.best, case.weights, to, tmp_path / to)
    assert report.max_difference < 1e-4


@pytest.mark.parametrize("kind", ["spectral", "heads", "weight_mask"])
@pytest.mark.parametrize("given", ["nothing", "list", "no gradients", "nan"])
def test_losses_from_which_nothing_can_be_taken_are_refused(kind, given):
    options = {
        "spectral": {"block": 4, "max_blocks": 1},
        "heads": {"compensate": "linear"},
        "weight_mask": {"importance": "saliency"},
    }
    model = make_model("bert")
    space = build_space(model, kinds={kind: options[kind]})
    structure = make_structure(space, space.candidates[:2], identify(model), "classification")
    attach(model, structure)
    batch = make_inputs()

    def losses():
        if given == "no gradients":
            with torch.no_grad():
                yield model(**batch).logits.mean()
        elif given == "nan":
            yield model(**batch).logits.mean() * float("nan")

    said = {"nothing": "no loss", "nan": "is nan"}
    with pytest.raises(StructureError, match=said.get(given, "does not lead to")):
        calibrate(model, [model(**batch).logits.mean()] if given == "list" else losses())
