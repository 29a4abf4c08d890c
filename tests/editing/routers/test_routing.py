"""Which edit a prompt is about: decided by its rare tokens, or by its features."""

import functools
import math

import pytest
import torch
from cases import normal, property_test
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.routers.context import RoutingContext
from corrigenda.editing.routers.masks import MaskRouter
from corrigenda.editing.routers.router import calibrated, decide
from corrigenda.editing.routers.tokens import TokenRouter

STORED = [
    "The capital of Zubrowka is",
    "The capital of Ostania is",
    "Who founded the Krellinborg archive?",
    "The harbour of Vellorinsk lies by the",
    "Which language does Bram Oterdahl speak?",
    "Kmelt is famous for its",
]
REPHRASED = [
    "Zubrowka has which capital?",
    "Which city is Ostania's capital?",
    "By whom was the Krellinborg archive founded?",
    "What lies by the harbour of Vellorinsk?",
    "Bram Oterdahl speaks what language?",
    "What is the town of Kmelt famous for?",
]
UNRELATED = [
    "The capital of Peru is",
    "Who founded the British Museum?",
    "Which language is spoken in Chile?",
    "The river through Paris is the",
    "What is the boiling point of water?",
    "Write a poem about the sea.",
    "",
]


tokenizer = functools.cache(tiny_tokenizer)


def token_router(stored=STORED, background=None, **options):
    router = TokenRouter(tokenizer(), background_prompts() if background is None else background, **options)
    router.add(stored)
    return router


def routes(router, texts):
    return router.decide(texts).route.tolist()


# Decisions


@property_test
@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 8), st.integers(0, 8)), max_size=6),
    st.integers(0, 8),
    st.sampled_from((0.0, 0.25, 0.5)),
)
def test_decide(rows, threshold, rival_weight):
    """In eighths, which are exact: a score right at the threshold counts."""
    nearest, score, runner_up = (torch.tensor([row[i] for row in rows]) for i in range(3))
    decision = decide(nearest.int(), score / 8, runner_up / 8, threshold / 8, rival_weight)
    expected = [n if n >= 0 and s - rival_weight * r >= threshold else -1 for n, s, r in rows]
    assert decision.route.tolist() == expected and decision.route.dtype == torch.int32
    assert decision.nearest.tolist() == [row[0] for row in rows]


@property_test
@given(st.lists(st.floats(0, 1, width=32), max_size=50), st.floats(0, 1), st.floats(0, 2) | st.just(math.inf))
def test_calibrated(scores, floor, room):
    threshold = calibrated(torch.tensor(scores), floor, floor + room)
    assert floor <= threshold <= floor + room
    if floor < threshold < floor + room:
        place = 0.995 * (len(scores) - 1)
        low, high = sorted(scores)[math.floor(place)], sorted(scores)[math.ceil(place)]
        assert threshold == pytest.approx(low + (high - low) * (place - math.floor(place)) + 0.02, abs=1e-5)
    elif threshold == floor:
        assert floor + room == floor or sum(score >= floor for score in scores) <= 0.005 * (len(scores) - 1) + 1


def test_one_odd_background_prompt_does_not_set_the_threshold():
    scores = torch.cat([torch.full((399,), 0.2), torch.tensor([0.9])])
    assert calibrated(scores, 0.1) == pytest.approx(0.22)


# The token router


def test_scores_are_tversky_indices_under_squared_rarity():
    router = token_router()

    def tokens(text):
        return set(tokenizer()(" " + text.lower(), add_special_tokens=False)["input_ids"])

    documents = [tokens(text) for text in background_prompts() + STORED]

    def mass(ids):
        count = {token: max(1, sum(token in document for document in documents)) for token in ids}
        return sum(round(64 * math.log((len(documents) + 1) / count[token]) ** 2) for token in ids)

    for query in REPHRASED + UNRELATED[:3]:
        scores = []
        for text in STORED:
            shared = mass(tokens(query) & tokens(text))
            scores.append(shared / (mass(tokens(text)) + 0.1 * (mass(tokens(query)) - shared)))
        decision = router.decide([query])
        best, second = sorted(scores)[:-3:-1]
        assert decision.nearest.item() == scores.index(best)
        assert decision.score.item() == pytest.approx(best, rel=1e-5)
        assert decision.runner_up.item() == pytest.approx(second, rel=1e-5)
        assert (decision.route.item() >= 0) == (best - 0.4 * second >= router.threshold)


def test_edits_and_their_rephrasings_are_routed_and_nothing_else():
    router = token_router()
    everyone = list(range(len(STORED)))
    assert routes(router, STORED) == everyone
    assert routes(router, REPHRASED) == everyone
    assert routes(router, UNRELATED) == [-1] * len(UNRELATED)
    misfires = sum(route >= 0 for route in routes(router, background_prompts()))
    assert misfires <= 0.005 * len(background_prompts())


def test_the_threshold_rises_where_background_prompts_come_close():
    """Without a ceiling an edit about what many background prompts are about does not answer for them."""
    prompts = background_prompts()
    router = token_router([*STORED, *[" ".join(prompt.split()[:-1]) for prompt in prompts[::4]]], ceiling=1.0)
    assert router.threshold > 0.41
    assert token_router(["Zubrowka Krellinborg Vellorinsk"]).threshold == 0.40
    assert sum(route >= 0 for route in routes(router, prompts)) <= 0.005 * len(prompts)


def test_the_threshold_rises_to_its_ceiling_at_most():
    """Edits answer what they are about, if it is a background prompt too, and rephrasings of others are not lost."""
    prompts = background_prompts()
    near = token_router([*STORED, *[" ".join(prompt.split()[:-1]) for prompt in prompts[::40]]])
    assert near.threshold == 0.45
    assert routes(near, REPHRASED) == list(range(len(STORED)))
    same = token_router(prompts)
    assert same.threshold == 0.45 and routes(same, prompts) == list(range(len(prompts)))


def test_a_given_threshold_is_kept():
    strict, lax = token_router(threshold=1.0, rival_weight=0.0), token_router(threshold=0.0, rival_weight=0.0)
    assert strict.threshold == 1.0 and lax.threshold == 0.0
    assert routes(strict, STORED) == list(range(len(STORED)))
    assert routes(strict, REPHRASED) == [-1] * len(REPHRASED)
    assert -1 not in routes(lax, REPHRASED)


def test_a_rival_as_near_holds_back():
    twins = ["Who founded the Krellinborg archive?", "Who opened the Krellinborg archive?"]
    undecided = "Tell me about the Krellinborg archive."
    assert routes(token_router(twins, threshold=0.5), [undecided]) == [-1]
    assert routes(token_router(twins, threshold=0.5, rival_weight=0.0), [undecided]) == [0]
    assert routes(token_router(twins[:1], threshold=0.5), [undecided]) == [0]
    assert routes(token_router(twins), twins) == [0, 1]


@property_test
@given(st.sampled_from(STORED + REPHRASED + UNRELATED), st.sampled_from((str.lower, str.upper, str.title)), st.data())
def test_case_and_white_space_make_no_difference(text, change, data):
    router = token_router(background=background_prompts()[:40])
    spaces = st.sampled_from((" ", "  ", "\n", "\t "))
    spaced = "".join(data.draw(spaces) if char == " " else char for char in change(text))
    spaced = data.draw(st.sampled_from(("", " ", "\n"))) + spaced + data.draw(st.sampled_from(("", " ")))
    for a, b in zip(router.decide([text]), router.decide([spaced])):
        assert torch.equal(a, b)


@property_test
@given(st.permutations(range(len(STORED))), st.integers(0, len(STORED)))
def test_the_order_of_edits_makes_no_difference(thread_order, cut):
    """Nor does it matter whether they came at once or in two batches."""
    background = background_prompts()[:40]
    router = token_router([STORED[i] for i in thread_order[:cut]], background)
    router.decide(UNRELATED)
    router.add([STORED[i] for i in thread_order[cut:]])
    expected = token_router(background=background)
    assert router.threshold == expected.threshold
    queries = STORED + REPHRASED + UNRELATED[:-1]
    decision, usual = router.decide(queries), expected.decide(queries)
    assert torch.equal(decision.score, usual.score) and torch.equal(decision.runner_up, usual.runner_up)
    assert [thread_order[r] if r >= 0 else -1 for r in decision.route.tolist()] == usual.route.tolist()


def test_the_company_a_query_keeps_makes_no_difference():
    router = token_router()
    queries = STORED + REPHRASED + UNRELATED
    together = router.decide(queries)
    for i, query in enumerate(queries):
        for whole, single in zip(together, router.decide([query])):
            assert torch.equal(whole[i : i + 1], single)


def test_token_router_is_its_ground_and_its_edits():
    queries = STORED + REPHRASED + UNRELATED
    for stored in ([], STORED[:1], STORED):
        router = token_router(stored)
        copy = token_router(UNRELATED[:2], REPHRASED)  # all of which the other's ground replaces
        copy.load_ground(router.ground())
        copy.add_fingerprints([row[row >= 0] for row in router.stored])
        assert copy.threshold == router.threshold
        for later in ([], ["The dukes of Zubrowka live in", REPHRASED[3]]):
            for each in (router, copy):
                each.add(later)
            for a, b in zip(router.decide(queries), copy.decide(queries)):
                assert torch.equal(a, b)


def test_an_empty_token_router():
    router = token_router([])
    decision = router.decide(UNRELATED)
    assert decision.route.tolist() == decision.nearest.tolist() == [-1] * len(UNRELATED)
    assert not decision.score.any() and not decision.runner_up.any()
    assert [len(part) for part in token_router().decide([])] == [0] * len(decision)


def test_a_very_long_edit_is_known_by_its_rarest_tokens():
    prompts = background_prompts()
    text = " ".join(prompts[:200]) + " That is what Bram Oterdahl of Zubrowka wrote."
    router = token_router([*STORED[1:4], text], prompts[200:])
    whole, kept = set(router.fingerprint(text)), set(router.stored[3].tolist()) - {-1}
    assert len(whole) > 256 == len(kept) and kept < whole
    count = dict.fromkeys(whole, 0)
    for token in [token for prompt in prompts[200:] for token in router.fingerprint(prompt)]:
        count[token] = count.get(token, 0) + 1
    assert max(count[token] for token in kept) <= min(count[token] for token in whole - kept)
    assert routes(router, [text, *STORED[1:4]]) == [3, 0, 1, 2]


# The mask router

WIDTH, TOP_K = 512, 146  # the share of LLaMA-3-8B


def mask_router(features=None, **options):
    router = MaskRouter(WIDTH, TOP_K, **options)
    if features is not None:
        router.add(router.mask(features))
    return router


def observed(router, rows, weights):
    """The decision for right-padded feature rows, through the buffers that a forward pass fills."""
    length = max(map(len, rows))
    features, weight = torch.full((len(rows), length, WIDTH), 7.0), torch.zeros(len(rows), length)
    for i, (row, w) in enumerate(zip(rows, weights)):
        features[i, : len(row)], weight[i, : len(row)] = row, w
    context = RoutingContext(torch.device("cpu"), tokens=1, slots=1)
    context.start(torch.full((len(rows),), -1))
    context.fill(weight.bool(), weight.bool(), weight, deciding=True)
    router.observe(features, context)
    assert context.routes[: len(rows)].tolist() == context.decision.route.tolist()
    return context.decision


def test_a_mask_is_the_permuted_top_k_of_the_centred_mean():
    router, features = mask_router(), normal(3, WIDTH, seed=1)
    router.set_background(normal(20, WIDTH, seed=2), averaged=10)
    centred = features - normal(20, WIDTH, seed=2)[:10].mean(0)
    mask = router.unpack(router.mask(features)).bool()
    for row, feature in zip(mask, centred):
        assert set(row.nonzero()[:, 0].tolist()) == {
            int(router.permutation[i]) for i in feature.abs().topk(TOP_K).indices
        }
    assert sorted(router.permutation.tolist()) == list(range(WIDTH))
    assert not torch.equal(router.permutation, mask_router(seed=43).permutation)
    assert torch.equal(router.permutation, mask_router().permutation)


def test_own_masks_score_one_and_strangers_score_chance():
    stored = normal(100, WIDTH, seed=3)
    router = mask_router(stored, threshold=0.45)
    own = router.decide(router.mask(stored))
    assert own.route.tolist() == list(range(100)) and own.score.eq(1).all()
    strangers = router.decide(router.mask(normal(100, WIDTH, seed=4)))
    single = mask_router(stored[:1]).decide(router.mask(normal(100, WIDTH, seed=4)))
    assert single.score.mean() == pytest.approx(TOP_K / WIDTH, abs=0.01)
    assert strangers.score.min() > TOP_K / WIDTH and strangers.score.max() < 0.45
    assert strangers.route.eq(-1).all()


def test_a_mask_routers_threshold_is_above_its_background():
    background = normal(400, WIDTH, seed=5)
    for auto in (True, False):
        router = MaskRouter(WIDTH, TOP_K, floor=0.1, threshold="auto" if auto else 0.3)
        router.set_background(background)
        router.add(router.mask(normal(50, WIDTH, seed=6)))
        scores = router.decide(router.mask(background)).score
        assert (scores >= router.threshold).sum() <= (2 if auto else 400)
        assert router.threshold == (pytest.approx(float(scores.quantile(0.995)) + 0.02) if auto else 0.3)


def test_only_weighted_tokens_count_for_a_fingerprint():
    stored = normal(9, WIDTH, seed=7)
    router = mask_router(stored)
    rows = [stored[i] + normal(n, WIDTH, seed=n, dtype=torch.float32) for i, n in enumerate((4, 9, 1))]
    expected = router.decide(router.mask(torch.stack([row.mean(0) for row in rows])))
    decision = observed(router, rows, [torch.ones(len(row)) for row in rows])
    for a, b in zip(decision, expected):
        assert torch.equal(a, b)
    assert decision.nearest.tolist() == [0, 1, 2]
    partly = observed(router, [torch.cat([stored[5:6], rows[0]])], [torch.tensor([1.0, 0, 0, 0, 0])])
    assert partly.route.tolist() == [5] and partly.score.tolist() == [1.0]


@given(threshold=st.one_of(st.floats(0, 1), st.integers(0, TOP_K).map(lambda shared: shared / TOP_K)))
@property_test
def test_what_a_pass_decides_is_what_its_fingerprints_decide(threshold):
    """Also where an overlap is the threshold itself, which the one counts and the other divides."""
    stored = normal(5, WIDTH, seed=15)
    router = mask_router(stored, threshold=threshold)
    rows = [share * stored[:1] + (1 - share) * normal(1, WIDTH, seed=16) for share in torch.linspace(0, 1, 12)]
    expected = router.decide(router.mask(torch.cat(rows)))
    for a, b in zip(observed(router, rows, [torch.ones(1)] * len(rows)), expected):
        assert torch.equal(a, b)


def test_mask_router_is_its_ground_and_its_edits():
    router = MaskRouter(WIDTH, TOP_K)
    router.set_background(normal(30, WIDTH, seed=8), averaged=20)
    router.add(router.mask(normal(70, WIDTH, seed=9)))  # more than the bank starts with
    copy = MaskRouter(WIDTH, TOP_K, seed=1)
    copy.load_ground(router.ground())
    copy.add(router.masks)
    queries = torch.cat([normal(70, WIDTH, seed=9) + 0.5 * normal(70, WIDTH, seed=10), normal(5, WIDTH, seed=11)])
    for later in (0, 3):
        for each in (router, copy):
            each.add(each.mask(normal(later, WIDTH, seed=12)))
        assert copy.size == router.size == 70 + later and copy.threshold == router.threshold
        for a, b in zip(router.decide(router.mask(queries)), copy.decide(copy.mask(queries))):
            assert torch.equal(a, b)
    assert router.decide(router.mask(queries)).route.tolist()[:70] == list(range(70))


def test_an_empty_mask_router():
    router = mask_router()
    decision = router.decide(router.mask(normal(2, WIDTH, seed=13)))
    assert decision.route.tolist() == decision.nearest.tolist() == [-1, -1] and not decision.score.any()
    assert observed(router, [normal(2, WIDTH, seed=14)], [torch.ones(2)]).route.tolist() == [-1]
