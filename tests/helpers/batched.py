"""A served tiny model under transformers' continuous batching, for its tests: prompts, and managers that run."""

from __future__ import annotations

import time

from transformers import ContinuousBatchingConfig, GenerationConfig

EDITED = ["Zubrowka has which capital?", "What does Kmelt make?", "Who founded the Krellin museum?"]
PLAIN = ["Why is the sky blue?", "Name three sorts of cheese and a wine that goes well with one of them.", "Hm"]
PROMPTS = [EDITED[0], PLAIN[0], EDITED[1], PLAIN[1], EDITED[2], PLAIN[2]]
IDS = ["a", None, "c", None, "b", None]
NEW = 10


def config(**settings):
    return ContinuousBatchingConfig(**{"max_batch_tokens": 64, "num_blocks": 128, "page_size": 8, **settings})


def tokens(outputs):
    assert all(output.error is None for output in outputs.values())
    return [output.generated_tokens for output in outputs.values()]


def batch(served, rows, new=NEW, generation=None, **settings):
    return served.generate_batch(
        rows, max_new_tokens=new, generation_config=generation, continuous_batching_config=config(**settings)
    )


class Running:
    """A manager that goes on running, and answers as they come."""

    def __init__(self, served, **settings):
        self.manager = served.model.init_continuous_batching(
            generation_config=GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=2),
            continuous_batching_config=config(**settings),
        )
        self.manager.start()
        self.finished = {}
        while self.manager.batch_processor is None:  # it seeds torch's generator, which tiny models are made with
            time.sleep(0.01)

    def ask(self, row, **options):
        name = self.manager.add_request(row, **{"max_new_tokens": NEW, **options})
        return self.result(name)

    def result(self, name):
        limit = time.monotonic() + 60
        while name not in self.finished and time.monotonic() < limit:
            self.next(1)
        assert name in self.finished, f"{name} was not answered"
        return self.finished.pop(name)

    def next(self, timeout):
        """The name in the next result. Whoever asks for one by name spins over all others, and starves the passes."""
        found = self.manager.get_result(timeout=timeout)
        if found is not None and found.is_finished():
            assert found.error is None
            self.finished[found.request_id] = found.generated_tokens
        return found and found.request_id
