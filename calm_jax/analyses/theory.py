"""What the recordings offer a learner (POYO-SSL, sections 3.3 and C, D), per session."""

from __future__ import annotations

import dataclasses

import numpy as np

from calm_jax.analyses.material import Material, each_session
from calm_jax.analyses.result import Result
from calm_jax.analysis import curriculum, groups, information, landscape, spectrum
from calm_jax.errors import AnalysisError

_SEGMENT = 256  # frames of a spectrum, at most
_CURRICULA = 3  # sessions at most: it trains small models
_LINES = ("cell_line", "line", "genotype", "area", "region")  # conditions of Table 2


def run_information(material: Material, result: Result) -> None:
    """Fisher information, bounds, entropy, regularity and spectrum of every neuron; groups."""
    units = [s.unit for s in material.sessions]
    result.facts |= {"sessions": material.names(), "unit": units[0], "rate": material.rate}
    found: list[tuple[int, information.Information]] = []
    for i in each_session(material, result.missing, "information"):
        session, name, alive = material.sessions[i], material.names()[i], material.alive(i)
        ranges = material.frames(i, "train")
        try:
            info = information.neuron_information(
                session.traces, rate=session.rate, mask=session.mask, ranges=ranges
            )
        except AnalysisError as e:
            result.missing.append(f"information of session {name}: {e}")
            continue
        found.append((i, info))
        where = {"session": name, "animal": session.animal}
        for metric in ("fisher", "bound", "entropy", "regularity", "skewness", "kurtosis"):
            values = getattr(info, metric)[alive]
            value = float(np.nanmedian(values)) if np.isfinite(values).any() else np.nan
            result.put("neurons", f"median_{metric}", value, **where)
        share = np.nansum(info.independent[alive]) / max(np.nansum(info.frames[alive]), 1)
        result.put("neurons", "independent_share", float(share), **where)
    if found:
        _groups(material, result, found, len(set(units)) == 1)
        _spectrum(material, result, [i for i, _ in found])


def _spectrum(material: Material, result: Result, sessions: list[int]) -> None:
    """Spectra of all neurons, where the sessions have the same frequencies."""
    made = []
    longest = min(int(np.diff(material.frames(i, "train")).max()) for i in sessions)
    segment = min(longest, _SEGMENT)  # one length, so that all have the same frequencies
    for i in sessions:
        session = material.sessions[i]
        try:
            power = spectrum.power_spectrum(
                session.traces, session.rate, mask=session.mask,
                ranges=material.frames(i, "train"), segment=segment,
            )  # fmt: skip
        except AnalysisError as e:
            result.missing.append(f"power spectrum of session {material.names()[i]}: {e}")
            return
        made.append(power)
    if not np.allclose([p.frequency[1] for p in made], made[0].frequency[1], rtol=0.05):
        result.missing.append("power spectra: the sessions have different frame rates")
        return
    alive = np.concatenate([material.alive(i) for i in sessions])
    power = np.concatenate([p.power for p in made], 1)
    result.keep("spectrum", spectrum.Spectrum(
        made[0].frequency, np.where(alive, power, np.nan).astype(np.float32),
        np.where(alive, np.concatenate([p.segments for p in made]), 0), made[0].length,
    ))  # fmt: skip


def _merged(material: Material, found: list) -> information.Information:
    """The neurons of all sessions side by side; those constant in training have no information."""
    names = [f.name for f in dataclasses.fields(information.Information)]
    lags = min(len(info.autocorrelation) for _, info in found)
    out = {}
    for name in names:
        if name == "rate":
            out[name] = material.rate
        elif name == "autocorrelation":
            curves = [info.autocorrelation[:lags] for _, info in found]
            out[name] = np.concatenate(curves, 1).astype(np.float32)
        else:
            out[name] = np.concatenate([getattr(info, name) for _, info in found])
    alive = np.concatenate([material.alive(i) for i, _ in found])
    out["fisher"] = np.where(alive, out["fisher"], np.nan)
    return information.Information(**out)


def _groups(material: Material, result: Result, found: list, one_unit: bool) -> None:
    """Table 2: groups of neurons, by line or area where they are known, else by session."""
    column = material.column(_LINES)
    kind = "session" if column is None else column[0]
    if column is None:
        text = [np.full(len(info.fisher), material.names()[i]) for i, info in found]
    else:
        text = [column[1][i] for i, _ in found]
    whole, group = _merged(material, found), np.concatenate(text)
    result.keep("neurons", whole)
    result.arrays["group"] = group
    result.facts["groups"] = kind
    if not one_unit:
        result.missing.append("groups of neurons: the sessions have traces in different units")
        return
    condition = conditions(material, result, [i for i, _ in found])
    result.facts["conditions"] = condition
    if column is not None:
        condition = _of_groups(condition, dict(zip(material.names(), column[1])))
    try:
        table = groups.compare(whole, group, condition)
    except AnalysisError as e:
        result.missing.append(f"groups of neurons by {kind}: {e}")
        return
    result.keep("groups", table)
    for k, name in enumerate(table.names):
        for metric in ("neurons", "fisher", "bound", "raw", "effective", "efficiency",
                       "condition", "score"):  # fmt: skip
            result.put(f"{kind} {name}", metric, float(getattr(table, metric)[k]))


def _of_groups(conditions: dict[str, float], labels: dict[str, np.ndarray]) -> dict[str, float]:
    """Median over the sessions of each group; {} where a session has neurons of several."""
    own = {n: np.unique(labels[n][labels[n] != ""]) for n in conditions}
    if any(len(x) != 1 for x in own.values()):
        return {}
    names = {n: str(x[0]) for n, x in own.items()}
    return {g: float(np.median([conditions[n] for n in names if names[n] == g]))
            for g in set(names.values())}  # fmt: skip


def conditions(material: Material, result: Result, sessions: list[int]) -> dict[str, float]:
    """Condition numbers on subsets of as many neurons as every session has, at most 100."""
    frames = [int(np.diff(material.frames(i, "train")).sum()) for i in sessions]
    alive = [int(material.alive(i).sum()) for i in sessions]
    size, out = min(100, *alive, *(f // 4 for f in frames)), {}
    for i in sessions:
        s, name = material.sessions[i], material.names()[i]
        inside = np.concatenate([np.arange(a, b) for a, b in material.frames(i, "train")])
        try:
            out[name] = information.condition_number(
                s.traces[inside], neurons=size, mask=s.mask[inside], seed=result.seed
            ).value
        except AnalysisError as e:
            result.missing.append(f"condition number of session {name}: {e}")
    return out


def run_landscape(material: Material, result: Result) -> None:
    """The loss landscape of every session's scaled training traces."""
    result.facts |= {"sessions": material.names()}
    for i in each_session(material, result.missing, "loss landscape"):
        name = material.names()[i]
        try:
            activity = np.concatenate([z[m.all(1)] for z, m in material.scaled(i, "train")])
            found = landscape.landscape(activity[:, material.alive(i)], seed=result.seed, most=3000)
        except AnalysisError as e:
            result.missing.append(f"loss landscape of session {name}: {e}")
            continue
        result.keep(f"session{i}", found)
        where = {"session": name, "animal": material.animals()[i]}
        for metric in ("roughness", "ruggedness", "minima", "n"):
            result.put("landscape", metric, getattr(found, metric), **where)


def run_curriculum(material: Material, result: Result, most: int = _CURRICULA) -> None:
    """The four orders of training samples, on at most `most` sessions."""
    result.facts |= {"sessions": material.names()}
    taken = list(each_session(material, result.missing, "curriculum"))
    if len(taken) > most:
        result.missing.append(
            f"curriculum of {len(taken) - most} more sessions: left out, to bound its time"
        )
    for i in taken[:most]:
        name = material.names()[i]
        pieces = [z[:, material.alive(i)] for z, _ in material.scaled(i, "train")]
        edges = np.cumsum([0] + [len(p) for p in pieces])
        try:
            found = curriculum.curriculum(
                np.concatenate(pieces), ranges=np.stack([edges[:-1], edges[1:]], 1),
                seed=result.seed, most=3000,
            )  # fmt: skip
        except AnalysisError as e:
            result.missing.append(f"curriculum of session {name}: {e}")
            continue
        result.keep(f"session{i}", found)
        where = {"session": name, "animal": material.animals()[i]}
        for order in found.performance:
            result.put(order, "performance", float(np.mean(found.performance[order])), **where)
            result.put(order, "stability", float(np.mean(found.stability[order])), **where)
