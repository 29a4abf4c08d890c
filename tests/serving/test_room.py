"""Requests that are longer than a continuous batch has room for: refused at once, and nobody beside them suffers."""

import pytest
from batched import EDITED, PLAIN, Running, batch

from corrigenda.serving import ServingError

pytestmark = pytest.mark.usefixtures("few_background_prompts")

ROOM = {"num_blocks": 8}  # pages of eight tokens


def test_a_prompt_that_never_fits_is_refused_and_those_beside_it_are_answered(serve, folders, alone):
    served = serve(folders / "shared")
    running = Running(served, **ROOM)
    rows = served.encode([EDITED[0], PLAIN[0]])
    before = running.manager.add_request(rows[0])
    for streaming in (False, True):
        with pytest.raises(ServingError, match=r"The prompt has .* tokens, and there is room for 64") as refused:
            running.manager.add_request(rows[1] * 20, streaming=streaming)
        assert refused.value.status == 400
    assert running.result(before) == alone(rows[:1])[0]
    assert running.ask(rows[1]) == alone(rows[1:])[0]


def test_an_answer_ends_where_the_room_does(serve, folders):
    served = serve(folders / "shared")
    running = Running(served, **ROOM)
    (row,) = served.encode(PLAIN[:1])
    name = running.manager.add_request(row, max_new_tokens=500, eos_token_id=-1)
    assert len(running.result(name)) == 64 - len(row)


def test_the_positions_that_a_model_has_are_room_too(serve, folders):
    served = serve(folders / "shared")
    served.model.config.max_position_embeddings = 20
    running = Running(served, **ROOM)
    (row,) = served.encode(PLAIN[:1])
    with pytest.raises(ServingError, match="room for 20"):
        running.manager.add_request(row * 10)


def test_a_batch_says_what_did_not_fit(serve, folders):
    served = serve(folders / "shared")
    (row,) = served.encode(PLAIN[:1])
    with pytest.raises(ServingError, match="room for 64"):
        batch(served, [row, row * 20], **ROOM)
    assert len(batch(served, [row], **ROOM)) == 1
