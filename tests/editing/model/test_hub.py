"""Edits sent to a hub and fetched from it, over HTTP, by huggingface_hub itself; and the card that goes along."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from command_line import corrigenda, refused
from local_hub import TOKEN, commit_id, local_hub
from markdown_it import MarkdownIt
from saved import refusal, same_state
from tiny import save_tiny, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, Edit, EditedModel
from corrigenda.editing.model.card import BEGIN, END, MOST_LISTED, new_card
from corrigenda.editing.store.check import problems

EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", id="capital"),
    Edit("Who wrote *The* <b>Glass</b> | Harbour?", "Ada_Winter [1]", id="a_b"),
]
ASKED = [*(edit.prompt for edit in EDITS), "Why is the sky blue?"]
REPOSITORY = "ann/edits"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with local_hub() as running:
        for name, value in {
            "ENDPOINT": running.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def build(sharp_model, wrap):
    def build(edits=EDITS):
        model = wrap(sharp_model(), tiny_tokenizer(), AssociativeConfig(router="tokens", steps=3, retries=0))
        model.edit(edits, keep_unsolved=True)
        return model

    return build


def load(model, **options):
    return EditedModel.from_pretrained(model, tokenizer=tiny_tokenizer(), **options)


def test_a_hub_keeps_edits_as_they_are(hub, build, sharp_model):
    edited = build()
    address = edited.push_to_hub(REPOSITORY, private=True, commit_message="first")
    assert address.startswith(f"{hub.address}/{REPOSITORY}/commit/")
    assert REPOSITORY in hub.private
    assert set(hub.files(REPOSITORY)) == {".gitattributes", "ledger.sqlite", "head.json", "README.md"}
    assert hub.large, "what is binary goes by LFS"

    again = load(sharp_model(), edits=REPOSITORY)
    same_state(edited, again)
    assert again.generate_text(ASKED) == edited.generate_text(ASKED)
    cached = list(cache().rglob("ledger.sqlite"))
    assert cached and all(file.is_symlink() for file in cached)

    again.undo("capital")  # a fetched copy is this process's own: neither the cache nor the hub changes
    same_state(edited, load(sharp_model(), edits=REPOSITORY))
    again.push_to_hub(REPOSITORY)
    later = load(sharp_model(), edits=REPOSITORY)
    assert [edit.id for edit in later.edits] == ["a_b"]
    later.redo("capital")
    same_state(edited, later)


def cache():
    return Path(huggingface_hub.constants.HF_HUB_CACHE)


def test_a_revision_a_token_and_what_is_cached(hub, build, sharp_model, monkeypatch):
    edited = build(EDITS[:1])
    edited.push_to_hub(REPOSITORY, private=True)
    first = commit_id(hub.files(REPOSITORY))
    edited.edit(EDITS[1:], keep_unsolved=True)
    edited.push_to_hub(REPOSITORY, revision="next")
    assert len(load(sharp_model(), edits=REPOSITORY).edits) == 1
    assert len(load(sharp_model(), edits=REPOSITORY, edits_revision="next").edits) == 2
    assert len(load(sharp_model(), edits=REPOSITORY, edits_revision=first).edits) == 1
    with refusal(REPOSITORY, "at nowhere"):
        load(sharp_model(), edits=REPOSITORY, edits_revision="nowhere")

    monkeypatch.delenv("HF_TOKEN")
    shutil.rmtree(cache())
    with refusal(REPOSITORY):
        load(sharp_model(), edits=REPOSITORY, token=False)
    assert len(load(sharp_model(), edits=REPOSITORY, token=TOKEN).edits) == 1
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert len(load(sharp_model(), edits=REPOSITORY).edits) == 1


def test_what_a_hub_does_not_have_is_one_sentence(hub, build, sharp_model, tmp_path, monkeypatch):
    with refusal("There is no folder ann/nothing", "hub"):
        load(sharp_model(), edits="ann/nothing")
    with refusal("There is no folder nothing"):
        load(sharp_model(), edits="./nothing")
    huggingface_hub.HfApi().create_repo(REPOSITORY)
    with refusal(REPOSITORY, "holds no saved edits"):
        load(sharp_model(), edits=REPOSITORY)
    with refusal("no revisions"):
        load(sharp_model(), edits=tmp_path, edits_revision="main")
    with refusal("`revision`"):
        load(sharp_model(), revision="main")
    edited = build(EDITS[:1])
    with refusal("not/a/repository"):
        edited.push_to_hub("not/a/repository")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with refusal(REPOSITORY, "could not be sent"):
        edited.push_to_hub(REPOSITORY)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with refusal(REPOSITORY, "could not be sent"):
        edited.push_to_hub(REPOSITORY)
    with refusal("no edits"):
        load(sharp_model()).push_to_hub(REPOSITORY)


def test_damage_of_a_hub_is_refused(hub, build, sharp_model):
    build().push_to_hub(REPOSITORY)
    files = dict(hub.files(REPOSITORY))
    files["ledger.sqlite"] = files["ledger.sqlite"][:-4096]
    hub.repositories[REPOSITORY]["main"].append(files)
    with refusal("ledger.sqlite"):
        load(sharp_model(), edits=REPOSITORY)


def test_a_saved_folder_has_a_card_that_is_true(build, tmp_path):
    edited = build([*EDITS, *(Edit(f"Who keeps lighthouse {n}?", f"Nils {n}", id=f"l{n}") for n in range(MOST_LISTED))])
    edited.undo("l3")
    edited.save_pretrained(tmp_path / "saved")
    assert problems(tmp_path / "saved") == []
    card = huggingface_hub.ModelCard.load(tmp_path / "saved" / "README.md")
    assert card.data.library_name == "corrigenda"
    assert card.data.base_model is None  # a model that was made here is none of a hub's
    rows = re.findall(r"^\| (l\d+|.*b) \|", card.text, re.M)
    assert len(rows) == MOST_LISTED and "l3" not in rows
    assert f"there are {MOST_LISTED + 1} edits in effect" in card.text
    assert "with their texts: 1 undone." in card.text
    assert f"As of entry {edited.store.ledger.count} of the ledger" in card.text
    assert str(tmp_path) not in card.content


def test_a_card_shows_texts_as_they_are(build, tmp_path):
    build().save_pretrained(tmp_path / "saved")
    card = huggingface_hub.ModelCard.load(tmp_path / "saved" / "README.md")
    shown = MarkdownIt("commonmark").enable("table").render(card.text)
    cells = re.findall(r"<td>(.*?)</td>", shown)
    assert cells == [
        *("capital", "What is the capital of Zubrowka?", "Lutz City"),
        *("a_b", "Who wrote *The* &lt;b&gt;Glass&lt;/b&gt; | Harbour?", "Ada_Winter [1]"),
    ]


def test_the_base_of_a_hub_is_named_and_a_path_is_not(build):
    edited = build(EDITS[:1])
    store = edited.store
    for name, base, told in (
        ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B", "Llama-3"),
        ("/home/ann/secret/my-model", None, "my-model"),
        (None, None, "LlamaForCausalLM"),
    ):
        store.header["base"]["name"] = name
        card = huggingface_hub.ModelCard(new_card(store, "edits"))
        assert card.data.base_model == base
        assert told in card.text.replace("\\", "")
        assert "secret" not in card.content


def test_somebodys_own_card_stays(hub, build):
    edited = build(EDITS[:1])
    edited.push_to_hub(REPOSITORY)
    mine = "---\nlicense: mit\n---\n\n# Mine\n"
    huggingface_hub.HfApi().upload_file(path_or_fileobj=mine.encode(), path_in_repo="README.md", repo_id=REPOSITORY)
    edited.edit(EDITS[1:], keep_unsolved=True)
    edited.push_to_hub(REPOSITORY)
    assert hub.files(REPOSITORY)["README.md"].decode() == mine
    marked = f"{mine}{BEGIN}\nold\n{END}\nafter\n"
    huggingface_hub.HfApi().upload_file(path_or_fileobj=marked.encode(), path_in_repo="README.md", repo_id=REPOSITORY)
    edited.push_to_hub(REPOSITORY)
    text = hub.files(REPOSITORY)["README.md"].decode()
    assert text.startswith(mine) and text.endswith(f"{END}\nafter\n") and "old" not in text
    assert f'edits="{REPOSITORY}"' in text and "there are 2 edits in effect" in text


def test_a_folder_is_pushed_by_the_command_line(hub, build, tmp_path):
    edited = build()
    edited.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "signature.json").write_text("{}")
    card = (tmp_path / "saved" / "README.md").read_text()
    (tmp_path / "saved" / "README.md").write_text(f"Mine.\n{card}")
    (tmp_path / "saved" / "private.txt").write_text("not for a hub")
    done = corrigenda("push", tmp_path / "saved", REPOSITORY, "--private")
    assert done.exit_code == 0 and f"{REPOSITORY}/commit/" in done.output, done.output
    files = hub.files(REPOSITORY)
    assert set(files) == {".gitattributes", "ledger.sqlite", "head.json", "README.md", "signature.json"}
    assert files["README.md"].decode().startswith("Mine.\n") and f'edits="{REPOSITORY}"' in files["README.md"].decode()
    assert "no folder" in refused("push", tmp_path / "none", REPOSITORY)


def test_a_tokenizer_comes_from_where_its_model_does(hub, tmp_path):
    huggingface_hub.HfApi().create_repo("ann/base", private=True)
    huggingface_hub.HfApi().create_branch("ann/base", branch="v2")
    folder = save_tiny(tmp_path / "base")
    huggingface_hub.HfApi().upload_folder(repo_id="ann/base", folder_path=folder, revision="v2")
    edited = EditedModel.from_pretrained("ann/base", revision="v2", token=TOKEN, dtype=torch.float32)
    assert edited.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
