"""Couplings, time constants and codes of a run (beyond the papers)."""

from __future__ import annotations

import numpy as np

from calm_jax.analyses import responses
from calm_jax.analyses.material import Material, each_session
from calm_jax.analyses.result import Result
from calm_jax.analysis import code_gallery, coupling
from calm_jax.analysis.spectrum import autocorrelation
from calm_jax.analysis.timescales import Decay, decay_times
from calm_jax.baselines import population_ridge
from calm_jax.errors import AnalysisError, CalmError, RunError
from calm_jax.simulate import population
from calm_jax.tasks.codes import Codes

WINDOWS = 4  # averaged over in a response
_LAG = 1  # frames of the lagged correlation
_RIDGE = 4000  # training windows of the ridge
_SHUFFLES = 200  # relabellings behind the null of an agreement
_EDGES = 60  # transitions drawn between codes
_AUTO = 5.0  # s of autocorrelation that a decay is fitted to, at most


def true_networks(material: Material) -> dict[int, np.ndarray]:
    """The true coupling J of simulated sessions, drawn again from the seed of the experiment."""
    data = material.experiment.data
    if not material.own or data.name != "simulated_population":
        return {}
    index = {f"sim{k}": k for k in range(data.simulation.sessions)}
    return {
        i: population.network(data.simulation, index[s.session])
        for i, s in enumerate(material.sessions)
        if s.session in index and s.n_neurons == data.simulation.neurons
    }


def run_coupling(material: Material, result: Result) -> None:
    """Who informs whom: the model's couplings and those of simple methods, against the truth."""
    truth = true_networks(material)
    horizon = material.experiment.forecasting.horizon
    result.facts |= {
        "sessions": material.names(), "windows": WINDOWS, "rate": material.rate,
        "patch": material.patch, "true": bool(truth), "top": coupling.TOP,
    }  # fmt: skip
    if not truth:
        result.missing.append(
            "agreement with a true connectivity: these recordings have none (simulations do)"
        )
    waves = None
    if material.trained.model.transformer.readout is None:
        waves = _code_waveforms(material)
    for i in each_session(material, result.missing, "coupling"):
        name, alive = material.names()[i], material.alive(i)
        found: dict[str, np.ndarray] = {}
        for method, make in (
            ("response", lambda i=i: _response(material, i, result, waves)),
            ("mixing", lambda i=i: {"mixing": _mixing(material, i)}),
            ("correlation", lambda i=i: _correlations(material, i)),
            ("ridge", lambda i=i: _ridge(material, i, horizon)),
        ):
            try:
                found |= make()
            except CalmError as e:
                result.missing.append(f"coupling by {method} in session {name}: {e}")
        found = {k: v[np.ix_(alive, alive)] for k, v in found.items()}
        where = {"session": name, "animal": material.animals()[i]}
        for method, c in found.items():
            result.arrays[f"session{i}.{method}"] = c.astype(np.float32)
        if i in truth:
            j = truth[i][np.ix_(alive, alive)]
            result.arrays[f"session{i}.true"] = j
            for method, c in found.items():
                scores = coupling.agreement(c, j, shuffles=_SHUFFLES, seed=result.seed)
                for metric, value in scores.items():
                    result.put(method, metric, value, **where)
            result.put("true", "n_pairs", len(j) * (len(j) - 1), **where)
        elif len(found) > 1 and int(alive.sum()) >= 3:
            for method in found:
                if method != "response" and "response" in found:
                    same = coupling.agreement(found["response"], found[method])
                    result.put(method, "r_with_response", same["r"], **where)
    _averages(result)


def _averages(result: Result) -> None:
    """Means over sessions; intervals and p-values stay with their session."""
    pairs = dict.fromkeys((r["method"], r["metric"]) for r in result.rows)
    for method, metric in pairs:
        if metric in ("r", "spearman", "auc_strong", "auc_sign", "r_with_response"):
            values = [r["value"] for r in result.rows
                      if (r["method"], r["metric"]) == (method, metric)]  # fmt: skip
            if np.isfinite(values).any():
                result.put(method, metric, float(np.nanmean(values)))


def _context(material: Material, i: int) -> np.ndarray:
    """Windows (W, C, N) of the test part for responses, of the forecasts' context."""
    f = material.experiment.forecasting
    part = "test"
    longest = int(max(b - a for a, b in material.frames(i, part)))
    patch = material.patch
    length = min(f.context, longest - 1) // patch * patch
    if length < 2 * patch:
        raise AnalysisError("no test range holds two codes", found=f"{longest} frames")
    return material.windows(i, part, length, 1, WINDOWS)[0]


def _response(
    material: Material, i: int, result: Result, waves: np.ndarray | None
) -> dict[str, np.ndarray]:
    """The response over the whole read-out, and over the first code; own responses kept."""
    x, n = _context(material, i), material.sessions[i].n_neurons
    r = responses.responses(
        material.trained.model, material.context(i, x), frames=material.patch, waveforms=waves
    )[:, :n, :n]
    result.arrays[f"session{i}.own"] = np.einsum("fii->fi", r)[:, material.alive(i)]
    out = {"response": r.mean(0)}
    if len(r) > material.patch:
        out["response_first"] = r[: material.patch].mean(0)
    return out


def _mixing(material: Material, i: int) -> np.ndarray:
    """What the tables of the signed mixing couple, all heads and layers with their gains."""
    model = material.trained.model
    n = material.sessions[i].n_neurons
    gains, maps = responses.head_gains(model)
    e = responses.mixing_embeddings(model, material.context(i, np.zeros((1, 1, n), np.float32)))[:n]
    total = np.zeros((n, n))
    for gain, (query, key) in zip(gains, maps, strict=True):
        q, k = (np.einsum("ne,ehr->nhr", e, m) for m in (query, key))
        total += coupling.weighted(coupling.mixing_tables(q, k), gain)
    return total


def _correlations(material: Material, i: int) -> dict[str, np.ndarray]:
    """Of the training traces."""
    ranges = list(material.scaled(i, "train"))
    return {
        "correlation": coupling.lagged_correlation(ranges, 0),
        "lagged_correlation": coupling.lagged_correlation(ranges, _LAG),
        "lagged_change": coupling.lagged_correlation(ranges, _LAG, change=True),
    }


def _ridge(material: Material, i: int, horizon: int) -> dict[str, np.ndarray]:
    """Weights of the population ridge that reads the last frame."""
    p, f = material.prepared, material.experiment.forecasting
    longest = int(max(b - a for a, b in material.frames(i, "train")))
    context = max(min(f.context, longest - horizon), 1)
    ridge = population_ridge.fit(p, p.splits, context, horizon, lags=(1,), limit=_RIDGE)
    weights = coupling.impulse_map(
        lambda x: ridge(x, i, np.ones(x.shape, bool), horizon), context, len(p.scalers.mean[i])
    )
    first = weights[: material.patch].mean(0)
    return {"ridge": weights.mean(0), "ridge_first": first}


def run_timescales(material: Material, result: Result, coupled: Result | None) -> None:
    """Decay of the autocorrelation of traces, of rates where they are known, and of the forecast
    after a change of the neuron's own last frames."""
    rate = material.rate
    result.facts |= {"rate": rate, "sessions": material.names()}
    simulation = None
    if true_networks(material):
        simulation = material.experiment.data.simulation
        result.facts |= {"tau": simulation.tau, "tau_decay": simulation.tau_decay}
    for i in each_session(material, result.missing, "time constants"):
        name, alive, session = material.names()[i], material.alive(i), material.sessions[i]
        where = {"session": name, "animal": session.animal}
        try:
            trace, times, curves = _trace_decay(material, i)
        except AnalysisError as e:
            result.missing.append(f"time constants of session {name}: {e}")
            continue
        result.arrays |= {f"session{i}.times": times, f"session{i}.autocorrelation": curves}
        result.arrays[f"session{i}.trace"] = trace.tau
        _put_decay(result, "trace", trace, where)
        key = f"session{i}.own"
        if coupled is not None and key in coupled.arrays and len(coupled.arrays[key]) >= 4:
            own = coupled.arrays[key]
            ahead = np.arange(1, len(own) + 1) / session.rate
            impulse = decay_times(ahead, own, offset=False)
            result.arrays |= {f"session{i}.ahead": ahead, f"session{i}.own": own}
            result.arrays[f"session{i}.impulse"] = impulse.tau
            _put_decay(result, "forecast_impulse", impulse, where)
        else:
            result.missing.append(
                f"decay of the forecast after an impulse in session {name}: no response of at "
                "least 4 frames (see coupling)"
            )
        if simulation is not None:
            true = _rate_decay(material, i, len(times))
            result.arrays[f"session{i}.rate"] = true.tau
            _put_decay(result, "true_rate", true, where)
            both = trace.known & true.known
            if both.sum() > 2:
                r = float(np.corrcoef(trace.tau[both], true.tau[both])[0, 1])
                result.put("trace", "r_with_true_rate", r, **where)
        result.put("all", "n_neurons", int(alive.sum()), **where)


def _put_decay(result: Result, method: str, decay: Decay, where: dict) -> None:
    tau = decay.tau[decay.known]
    result.put(method, "n_known", len(tau), **where)
    result.put(method, "median_tau_s", float(np.median(tau)) if len(tau) else np.nan, **where)
    for q, metric in ((0.25, "quarter_tau_s"), (0.75, "three_quarters_tau_s")):
        value = float(np.quantile(tau, q)) if len(tau) else np.nan
        result.put(method, metric, value, **where)


def _lags(material: Material, i: int) -> int:
    """Lags of the autocorrelation: 5 s, at most half the longest training range."""
    longest = int(max(b - a for a, b in material.frames(i, "train")))
    return max(min(round(_AUTO * material.sessions[i].rate), longest // 2), 4)


def _trace_decay(material: Material, i: int) -> tuple[Decay, np.ndarray, np.ndarray]:
    session, alive = material.sessions[i], material.alive(i)
    curves = autocorrelation(
        session.traces[:, alive], _lags(material, i), mask=session.mask[:, alive],
        ranges=material.frames(i, "train"),
    )[1:]  # fmt: skip
    times = np.arange(1, len(curves) + 1) / session.rate
    return decay_times(times, curves), times, curves.astype(np.float32)


def _rate_decay(material: Material, i: int, lags: int) -> Decay:
    """Of the true firing rates of a simulated session, simulated again."""
    config = material.experiment.data.simulation
    made = population.simulate(config, int(material.sessions[i].session.removeprefix("sim")))
    rates = made.rates.reshape(-1, config.neurons)[:, material.alive(i)]
    curves = autocorrelation(rates, lags, ranges=material.frames(i, "train"))[1:]
    return decay_times(np.arange(1, lags + 1) * config.dt, curves)


def _code_waveforms(material: Material) -> np.ndarray:
    """(K, patch) mean scaled frames of each code; 0 for those never used."""
    return np.nan_to_num(_gallery(material)[0].mean)


def _open_codes(material: Material) -> Codes:
    if not material.own:
        raise RunError("codes are exported for the recordings of the run alone")
    return Codes(material.trained.run.path("codes.h5"))


def _gallery(material: Material):
    """Waveforms in SD and in the unit of the traces, and the transitions, of the training part."""
    codes = _open_codes(material)
    patch, k = codes.patch, codes.codes
    scaled, real = code_gallery.WaveformSums(k, patch), code_gallery.WaveformSums(k, patch)
    pairs = np.zeros((k, k), np.int64)
    try:
        for i in range(len(material.sessions)):
            alive, session = material.alive(i), material.sessions[i]
            for a, b in material.frames(i, "train"):
                c, valid = codes.range(i, a, b)[alive], codes.mask(i, a, b)[alive]
                z, _ = material.prepared.range(i, int(a), int(b))
                raw = session.traces[a:b]
                for sums, x in ((scaled, z), (real, raw)):
                    frames = x[: c.shape[1] * patch, alive].T.reshape(*c.shape, patch)
                    sums.add(c[valid].astype(np.int64), frames[valid])
                pairs += code_gallery.transitions([(c, valid)], k)
    finally:
        codes.close()
    return scaled.result(), real.result(), pairs


def run_codes(material: Material, result: Result) -> None:
    """Mean waveform of every code, usage, and which code follows which."""
    try:
        scaled, real, pairs = _gallery(material)
        usage = code_gallery.usage(scaled.count, pairs)
    except CalmError as e:
        result.missing.append(f"code gallery: {e}")
        return
    units = {s.unit for s in material.sessions}
    result.facts |= {
        "rate": material.rate, "unit": units.pop() if len(units) == 1 else "unit of each session",
        "tokens": int(scaled.count.sum()),
        "z_score": material.experiment.preprocess.z_score,
    }  # fmt: skip
    result.keep("scaled", scaled)
    result.keep("real", real)
    result.keep("usage", usage)
    result.arrays |= {
        "pairs": pairs,
        "order": code_gallery.by_level(scaled),
        "edges": code_gallery.strongest(pairs, _EDGES),
    }
    result.put("codes", "variance_explained", scaled.explained)
    for name in ("used", "entropy", "perplexity", "next_entropy", "information", "persistence"):
        result.put("codes", name, getattr(usage, name))
    result.put("codes", "n_tokens", int(scaled.count.sum()))
