"""A progress bar over samples, with tokens per second and the share of busy rows."""

import time
from collections.abc import Iterator, Sequence

from grm_jax.sampling.request import Completion, Request
from grm_jax.sampling.scheduler import Engine


def track(engine: Engine, requests: Sequence[Request], show: bool) -> Iterator[Completion]:
    """Yields the engine's completions, with a progress bar if `show`."""
    if not show:
        yield from engine.run(requests)
        return
    from tqdm.auto import tqdm

    start = time.monotonic()
    with tqdm(total=sum(max(1, r.k) for r in requests), unit="sample", desc="sampling") as bar:
        for completion in engine.run(requests):
            bar.update()
            rate = engine.stats.tokens / max(1e-9, time.monotonic() - start)
            busy = engine.stats.utilisation
            bar.set_postfix_str(f"{rate:,.0f} tok/s, rows busy {busy:.0%}", refresh=False)
            yield completion
