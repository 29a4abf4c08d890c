"""Saved edits: whole or not there, the same answers in a fresh model, and nothing taken on trust."""

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from first_format import resign, sign, write_first_format
from saved import change, load, refusal, same_state, with_ground
from tiny import save_tiny, tiny_model, tiny_tokenizer

import corrigenda.editing
from corrigenda.editing import AssociativeConfig, Edit, EditedModel, Locality, MemoirConfig, WiseConfig
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.store.migrate import migrate

EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", subject="Zubrowka", id="zubrowka"),
    Edit(
        "Who founded the Krellin museum?",
        "Anna Blom",
        rephrases=("By whom was the Krellin museum founded?",),
        localities=(Locality("Why is the sky blue?", "light"), Locality("Hm")),
        metadata={"source": "a test", "n": [1, 2.5, None]},
    ),
    Edit("What does Kmelt make?", "red bricks"),
]
ASKED = [edit.prompt for edit in EDITS] + ["Zubrowka has which capital?", "Why is the sky blue?"]
TEMPLATE = "Question: {prompt}\\nAnswer:"
CONFIGS = {
    "associative": AssociativeConfig(router="tokens", contexts=3, steps=20, batch_size=1),
    "mask router": AssociativeConfig(
        contexts=2, steps=20, batch_size=1, router="mask", router_layer=1, top_k=60, beta=8.0
    ),
    "few contexts": AssociativeConfig(router="tokens", contexts=1, steps=60),
    "memoir": MemoirConfig(contexts=2, steps=5, top_k=70, seed=3, scope="causal"),
    "wise": WiseConfig(contexts=2, steps=5, learning_rate=0.1, act_ratio=0.5, save_every=2, merge_every=2, seed=3),
}
WHOLE = {"key_dimensions": None, "value_dtype": "model"}
"""Rows as the first format has them: it is from before there were others."""
FILES = ["head.json", "ledger.sqlite"]
SAVED = ["README.md", *FILES]
FIRST_FILES = ["editing_config.json", "edits.jsonl", "manifest.json", "memory.safetensors"]
first_methods = pytest.mark.parametrize("method", ["associative", "mask router", "memoir"])
every_method = pytest.mark.parametrize("method", ["associative", "mask router", "memoir", "wise"])


@pytest.fixture
def edited(sharp_model, wrap):
    """Builds an edited model that holds `edits`."""

    def build(method="associative", edits=EDITS, **changed):
        config = replace(CONFIGS[method], **changed)
        model = wrap(sharp_model(), tiny_tokenizer(), config, template=TEMPLATE)
        model.edit(edits)
        return model

    return build


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Saved edits for `sharp_model()`, written once, in this format and in the first."""
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight *= 4
    folder = tmp_path_factory.mktemp("original")
    for settings, write in (({}, EditedModel.save_pretrained), (WHOLE, write_first_format)):
        config = replace(CONFIGS["associative"], **settings)
        edited = EditedModel.wrap(model, tiny_tokenizer(), config, template=TEMPLATE)
        edited.edit(EDITS)
        write(edited, folder / ("first" if settings else "edits"))
        edited.detach()
    return folder


@pytest.fixture
def saved(originals, tmp_path):
    """A folder with saved edits, to do with as one likes."""
    return Path(shutil.copytree(originals / "edits", tmp_path / "edits"))


@pytest.fixture
def first(originals, tmp_path):
    """The same in the first format."""
    return Path(shutil.copytree(originals / "first", tmp_path / "edits"))


# What is saved comes back


@every_method
def test_round_trip(edited, sharp_model, tmp_path, method):
    before = edited(method)
    before.save_pretrained(tmp_path / "edits")
    assert sorted(file.name for file in (tmp_path / "edits").iterdir()) == SAVED
    assert stat.S_IMODE((tmp_path / "edits").stat().st_mode) == 0o755
    after = load(tmp_path / "edits", sharp_model())
    same_state(before, after)
    assert after.config == before.config and after.edits == before.edits
    assert after.prompts.to_dict() == before.prompts.to_dict()
    assert after.method.router.threshold == before.method.router.threshold
    answers = after.answer(ASKED, 8)
    assert answers == before.answer(ASKED, 8)
    assert all(answer.provenance.applied for answer in answers[:3])
    if method != "wise":
        assert [answer.edit for answer in answers[:3]] == after.edits
    after.save_pretrained(tmp_path / "again")
    same_state(before, load(tmp_path / "again", sharp_model()))
    after.close()
    assert sorted(file.name for file in (tmp_path / "edits").iterdir()) == SAVED


def test_a_model_folder_and_edits_by_path(tmp_path):
    folder = save_tiny(tmp_path / "model")
    before = EditedModel.from_pretrained(folder, config=CONFIGS["associative"], template=TEMPLATE)
    before.edit(EDITS)
    before.save_pretrained(tmp_path / "edits")
    after = EditedModel.from_pretrained(folder, edits=tmp_path / "edits")
    same_state(before, after)
    with refusal("config"):
        EditedModel.from_pretrained(folder, edits=tmp_path / "edits", config=CONFIGS["memoir"])


def test_no_edits_and_chats_round_trip(sharp_model, wrap, tmp_path):
    before = wrap(sharp_model(), tiny_tokenizer(), chat_template=True)
    before.save_pretrained(tmp_path / "new" / "edits")
    after = load(tmp_path / "new" / "edits", sharp_model())
    assert after.edits == [] and after.prompts.chat
    after.edit(EDITS)
    before.edit(EDITS)
    same_state(before, after)


@pytest.mark.parametrize("odd", ["a\u2028b", "a\x85b", "a\x0cb\rc", 'quote " \\ {prompt}', "日本 🦊", "<|im_end|>"])
def test_any_text_survives(edited, sharp_model, tmp_path, odd):
    target = "It is " + odd.replace("<|im_end|>", "the end")  # a special token is part of no target
    before = edited(edits=[Edit(f"What is {odd}?", target, subject=odd, metadata={"note": odd})])
    before.save_pretrained(tmp_path / "edits")
    assert load(tmp_path / "edits", sharp_model()).edits == before.edits


@every_method
def test_editing_goes_on_as_if_nothing_had_happened(edited, sharp_model, tmp_path, method):
    unbroken = edited(method)
    edited(method, EDITS[:2]).save_pretrained(tmp_path / "edits")
    resumed = load(tmp_path / "edits", sharp_model())
    resumed.edit(EDITS[2])
    same_state(unbroken, resumed)
    assert [edit.id for edit in resumed.edits] == [edit.id for edit in unbroken.edits]
    assert resumed.generate_text(ASKED, 4) == unbroken.generate_text(ASKED, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_edits_move_between_precisions(edited, sharp_model, wrap, tmp_path, dtype):
    targets = [edit.target for edit in EDITS]
    before = edited("few contexts")
    assert before.generate_text(ASKED[:3], 8) == targets
    before.save_pretrained(tmp_path / "single")
    half = load(tmp_path / "single", sharp_model().to(dtype))
    assert half.generate_text(ASKED[:3], 8) == targets
    written = wrap(sharp_model().to(dtype), tiny_tokenizer(), CONFIGS["few contexts"], template=TEMPLATE)
    written.edit(EDITS)
    assert written.generate_text(ASKED[:3], 8) == targets
    written.save_pretrained(tmp_path / "half")
    assert load(tmp_path / "half", sharp_model()).generate_text(ASKED[:3], 8) == targets


# Where edits may be saved, and what is left when they could not be


def test_a_folder_in_use_is_refused(edited, tmp_path):
    model = edited(edits=EDITS[:1])
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "used", tmp_path / "file", tmp_path / "file" / "below"):
        with refusal(path.name):
            model.save_pretrained(path)
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    with refusal("empty"):
        model.save_pretrained(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "used"]
    assert [file.read_text() for file in (tmp_path / "used").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), sqlite3.OperationalError("database or disk is full")]
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_failing_save_leaves_nothing(edited, tmp_path, monkeypatch, failure, exists):
    model = edited(edits=EDITS[:1])
    if exists:
        (tmp_path / "edits").mkdir()

    def fail(_ledger):
        raise failure

    monkeypatch.setattr("corrigenda.editing.store.ledger.Ledger.head", fail)
    with refusal(tmp_path / "edits", "No space left" if isinstance(failure, OSError) else "disk is full"):
        model.save_pretrained(tmp_path / "edits")
    assert [path.name for path in tmp_path.iterdir()] == ["edits"] * exists
    assert not exists or not any((tmp_path / "edits").iterdir())
    monkeypatch.undo()
    model.save_pretrained(tmp_path / "edits")


# What is not as it was saved is refused


@pytest.mark.parametrize("name", FIRST_FILES)
def test_a_damaged_or_missing_file_of_the_first_format_is_named(first, sharp_model, name):
    file, model = first / name, sharp_model()
    whole = file.read_bytes()
    inside = (
        whole.index(b"Question: ") if name == "manifest.json" else len(whole) // 2
    )  # where it matters: the template
    flipped = whole[:inside] + bytes([whole[inside] ^ 2]) + whole[inside + 1 :]
    for content in (whole[: len(whole) // 2], b"", flipped, whole + b"\0"):
        file.write_bytes(content)
        with refusal(file):
            load(first, model)
    file.unlink()
    with refusal(first):
        load(first, model)
    file.write_bytes(whole)
    load(first, model)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(saved, sharp_model, name):
    file, model = saved / name, sharp_model()
    whole = file.read_bytes()
    inside = whole.index(b"Question: ") if name == "ledger.sqlite" else len(whole) // 2
    flipped = whole[:inside] + bytes([whole[inside] ^ 2]) + whole[inside + 1 :]
    for content in (whole[: len(whole) // 2], b"", flipped):
        file.write_bytes(content)
        with refusal(name):  # in a checksum either file may be the one that is wrong: both are named
            load(saved, model)
    file.write_bytes(whole)
    load(saved, model)


def test_a_folder_without_edits_is_refused(tmp_path, sharp_model):
    with refusal(tmp_path / "none"):
        load(tmp_path / "none", sharp_model())
    with refusal(tmp_path, "holds no saved edits"):
        load(tmp_path, sharp_model())


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_format_is_refused(first, sharp_model, number):
    change(first / "manifest.json", format=number)
    with refusal(first / "manifest.json", "format"):
        load(first, sharp_model())


def test_a_newer_schema_is_refused(saved, sharp_model):
    with contextlib.closing(sqlite3.connect(saved / "ledger.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 3")
    with refusal(saved / "ledger.sqlite", "schema 3", "update Corrigenda"):
        load(saved, sharp_model())


@pytest.mark.parametrize("missing", ["prompts", "base", "sha256"])
@pytest.mark.parametrize("value", [None, {}, "text"])
def test_a_manifest_that_lacks_something_is_refused(first, sharp_model, missing, value):
    change(first / "manifest.json", **{missing: value})
    model = sharp_model()
    with refusal(first):
        load(first, model)
    assert not hasattr(model, "_corrigenda")


@pytest.mark.parametrize("checksums", [None, "text"])
def test_a_signed_manifest_without_checksums_is_refused(first, sharp_model, checksums):
    sign(first, sha256=checksums)
    with refusal(first / "manifest.json", "checksums"):
        load(first, sharp_model())


@pytest.mark.parametrize(
    "changed",
    [{"colour": "red"}, {"method": "wise"}, {"beta": "x"}, {"beta": float("nan")}, {"beta": None}, {"layer": 9}],
)
def test_settings_of_another_version_are_refused(first, sharp_model, changed):
    change(first / "editing_config.json", **changed)
    resign(first)
    with refusal(
        first if "layer" in changed else first / "editing_config.json", "layer 9" if "layer" in changed else ""
    ):
        load(first, sharp_model())


def test_edits_of_another_version_are_refused(first, sharp_model):
    line, *others = (first / "edits.jsonl").read_text().splitlines(keepends=True)
    for changed in (line.replace('"subject"', '"colour"'), "[1]\n"):
        (first / "edits.jsonl").write_text("".join([changed, *others]))
        resign(first)
        with refusal(first / "edits.jsonl"):
            load(first, sharp_model())


# The first format


@first_methods
def test_the_first_format_is_read_and_migrated(edited, sharp_model, tmp_path, method):
    before = edited(method, **({} if method == "memoir" else WHOLE))
    folder = write_first_format(before, tmp_path / "edits")
    answers = before.answer(ASKED, 8)
    after = load(folder, sharp_model())
    same_state(before, after)
    assert after.edits == before.edits and after.answer(ASKED, 8) == answers
    assert sorted(file.name for file in folder.iterdir()) == FIRST_FILES
    migrate(folder).close()
    assert sorted(file.name for file in folder.iterdir()) == FILES
    moved = load(folder, sharp_model())
    same_state(before, moved)
    if method == "memoir":
        with refusal("zubrowka", "cannot be taken out alone"):
            moved.remove("zubrowka")
        moved.edit(Edit("What does Osk make?", "glass", id="osk"))
        moved.remove("osk")
    else:
        moved.remove("zubrowka")
        before.remove("zubrowka")
    same_state(before, moved)


# What is for another model is refused, and the model left as it was


def test_edits_for_other_weights_are_refused(saved, sharp_model):
    with refusal(saved, "weights"):
        load(saved, sharp_model(seed=1))
    tuned = sharp_model()  # a fine-tune moves matrices and leaves norms about as they were
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.dim() == 2:
                parameter *= 1 + 0.2 * torch.randn_like(parameter)
    with refusal(saved, "weights"):
        load(saved, tuned)


def test_edits_for_another_tokenizer_are_refused(saved, sharp_model):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Zubrowka"])
    with refusal(saved, "tokenizer"):
        load(saved, sharp_model(), tokenizer)


@pytest.mark.parametrize("shape", [{"layers": 5}, {"layers": 3}, {"ffn": 192}, {"hidden": 96}])
def test_edits_for_another_shape_are_refused(saved, sharp_model, shape):
    model = sharp_model(**shape)
    with refusal(saved):
        load(saved, model)
    assert not hasattr(model, "_corrigenda") and all(parameter.requires_grad for parameter in model.parameters())
    assert type(model.model.layers[2 if shape != {"layers": 3} else 1].mlp.down_proj) is torch.nn.Linear


@pytest.mark.parametrize(
    ("method", "name", "shape"),
    [
        ("mask router", "router.background", (157,)),
        ("mask router", "router.background", (1, 160)),
        ("memoir", "memory.weight", (3, 5)),
        ("memoir", "memory.weight", (64,)),
    ],
)
def test_ground_of_another_shape_is_refused(edited, sharp_model, tmp_path, method, name, shape):
    edited(method, EDITS[:1]).save_pretrained(tmp_path / "whole")
    with_ground(tmp_path / "whole", tmp_path / "other", **{name: torch.ones(shape)})
    with refusal(tmp_path / "other"):
        load(tmp_path / "other", sharp_model())


def test_a_folder_is_closed_where_the_base_cannot_be_loaded(saved, tmp_path):
    def files():
        return [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]

    with pytest.raises(CorrigendaError) as caught:  # what was raised holds the frames, and all that they have open
        EditedModel.from_pretrained(str(tmp_path / "none"), saved)
    assert "none" in str(caught.value) and not any(str(saved) in name for name in files())


def test_a_warning_names_the_line_that_asked(saved, sharp_model):
    edited = EditedModel.from_pretrained(sharp_model(), saved, tokenizer=tiny_tokenizer())
    with pytest.warns(UserWarning, match="only loaded") as said:
        edited.remove(EDITS[0].id)
    assert [one.filename for one in said if one.category is not ResourceWarning] == [__file__]


def test_nothing_is_unpickled():
    """Tensors come from safetensors, all else from JSON: loading edits runs nothing of theirs."""
    folder = Path(corrigenda.editing.__file__).parent
    sources = sorted(folder.rglob("*.py"))
    assert len(sources) > 20
    forbidden = re.compile(r"torch\.load|torch\.save|\bpickle\b|\bjoblib\b|\bmarshal\b|\beval\(|\bexec\(|np\.load")
    found = [
        f"{source.name}:{number}"
        for source in sources
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1)
        if forbidden.search(re.sub(r"\.eval\(\)", "", line))
    ]
    assert found == []
