"""Training the rows of neurons and sessions that a transformer has never seen.

The rows are parameters of their own; every other parameter, the rows of the neurons that
were there before among them, is handed on as it is. Nothing but the new rows can move.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax import numpy as jnp

from calm_jax import config as configs
from calm_jax.errors import RunError
from calm_jax.models import tokenizer as tokenizers
from calm_jax.models.dual_axis import DualAxisTransformer
from calm_jax.tasks.next_code import NextCode

TABLES = ("neuron", "coupling", "session")


def tables_of(params: dict) -> tuple[str, ...]:
    """Which tables of rows a transformer has: of neurons, of their coupling, of sessions."""
    return tuple(name for name in TABLES if params.get(name))


def joined(params: dict, rows: dict) -> dict:
    """The parameters of a transformer whose tables begin with the new rows."""
    tables = {
        name: {"embedding": jnp.concatenate([new["embedding"], params[name]["embedding"]])}
        for name, new in rows.items()
    }
    return {**params, **tables}


def mean_rows(params: dict, store: Any) -> dict:
    """Rows for the neurons and sessions of a store, all at the mean of the rows there are.

    That is the row of a recording never seen.
    """
    counts = {"session": len(store.sessions)}
    rows = {}
    for name in tables_of(params):
        table = np.asarray(params[name]["embedding"])
        rows[name] = {"embedding": np.tile(table.mean(0), (counts.get(name, store.n_neurons), 1))}
    return rows


class NewRows(NextCode):
    """The Task of adapting a transformer to new recordings; the loss is that of `NextCode`.

    Args:
      config, training, prepared, tokenizer, seed, steps: as for `NextCode`; the store holds
        the new recordings alone.
      frozen: the parameters of the trained transformer.

    Raises:
      RunError: when the transformer has no table of rows.
    """

    name = "rows"

    def __init__(
        self,
        config: configs.DualAxis,
        training: configs.Training,
        prepared: Any,
        tokenizer: tokenizers.Tokenizer,
        *,
        frozen: dict,
        seed: int,
        steps: int,
    ):
        self.tables = tables_of(frozen)
        if not self.tables:
            raise RunError("this transformer has no rows of neurons or sessions to train")
        self._frozen = frozen
        self._old = {n: frozen[n]["embedding"].shape[0] for n in self.tables}
        super().__init__(config, training, prepared, tokenizer, None, seed=seed, steps=steps)

    def _init(self, key: Array) -> DualAxisTransformer:
        old = self._old.get("neuron", self._old.get("coupling", 0))
        return DualAxisTransformer(
            self.config,
            codes=nnx.merge(self._tokenizer_graph, self._tokenizer).config.codes,
            patch=self.patch,
            neurons=self.prepared.store.n_neurons + old,
            sessions=len(self.prepared.store.sessions) + self._old.get("session", 0),
            dtype=self._dtype,
            rngs=nnx.Rngs(key),
        )

    def init(self, key: Array) -> tuple[dict, dict]:
        """(rows, the frozen rest): step 0 is the run as it was, see `mean_rows`."""
        rows = jax.tree.map(jnp.asarray, mean_rows(self._frozen, self.prepared.store))
        extra = {"frozen": self._frozen, "tokenizer": nnx.to_pure_dict(self._tokenizer)}
        return rows, jax.tree.map(jnp.asarray, extra)

    def whole(self, rows: dict) -> dict:
        """The parameters of the adapted transformer, new rows first."""
        return joined(self._frozen, rows)

    def loss(
        self, params: dict, extra: dict, batch: dict, key: Array, step: Array
    ) -> tuple[Array, tuple[dict, dict]]:
        """Loss of a batch of windows as a function of the new rows alone."""
        full = joined(extra["frozen"], params)
        value, (_, metrics) = super().loss(full, extra["tokenizer"], batch, key, step)
        return value, (extra, metrics)

    def evaluate(self, params: dict, extra: dict) -> dict[str, float]:
        """Validation metrics, as of `NextCode`."""
        return super().evaluate(joined(extra["frozen"], params), extra["tokenizer"])
