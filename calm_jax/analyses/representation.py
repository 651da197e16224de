"""Embeddings and tuning of a run's neurons (CalM, section 6)."""

from __future__ import annotations

import numpy as np

from calm_jax.analyses import labels as label_files
from calm_jax.analyses.labels import Label
from calm_jax.analyses.material import Material
from calm_jax.analyses.result import Result
from calm_jax.analysis import classification, components, embeddings, tuning
from calm_jax.errors import AnalysisError

AREAS = ("area", "region", "cell_line", "plane")  # columns of the neuron table, first found


def run_tuning(material: Material, result: Result) -> None:
    """d' of every neuron for each label, in the training part."""
    names = label_files.chosen(material)
    if not names:
        known = ", ".join(label_files.known_names(material)) or "nothing to label frames or trials"
        result.missing.append(f"tuning (d'): no labels chosen with --labels; there are: {known}")
        return
    result.facts["labels"] = []
    for name in names:
        try:
            label = label_files.make(material, name)
            ds, share = _d_primes(material, label, result)
        except AnalysisError as e:
            result.missing.append(f"tuning to {name}: {e}")
            continue
        key = f"label{len(result.facts['labels'])}"
        result.facts["labels"].append(
            {"name": label.name, "classes": list(label.classes), "kind": label.kind}
        )
        result.arrays[f"{key}.d"] = ds
        result.keep(f"{key}.share", share)
    sizes = [s.n_neurons for s in material.sessions]
    result.arrays["session"] = np.repeat(np.arange(len(sizes)), sizes)


def _d_primes(material: Material, label: Label, result: Result) -> tuple[np.ndarray, tuning.Share]:
    """d' of all neurons of all sessions, NaN where a session has no label; and their share."""
    out, shares, counts, nulls = [], [], [], []
    for i, session in enumerate(material.sessions):
        d = np.full(session.n_neurons, np.nan)
        values = label.values[i]
        try:
            activity = tuning.epoch_means(session.traces, label.epochs[i], session.mask)
            found = tuning.d_prime(activity, values, label.classes)
            d = np.where(material.alive(i), found.d, np.nan)
            share = tuning.shuffled_share(
                activity[:, material.alive(i)], values, classes=label.classes,
                seed=material.settings.seed,
            )  # fmt: skip
            name = {"session": material.names()[i], "animal": session.animal}
            result.put(label.name, "selective_share", share.share, **name)
            result.put(label.name, "selective_share_null", float(np.mean(share.null)), **name)
            result.put(label.name, "n_neurons", share.n, **name)
            shares.append(share.share * share.n)
            nulls.append(share.null * share.n)
            counts.append(share.n)
        except AnalysisError as e:
            result.missing.append(f"tuning to {label.name} in {material.names()[i]}: {e}")
        out.append(d)
    if not counts:
        raise AnalysisError("no session has enough labelled epochs of both classes")
    n = sum(counts)
    null = np.sum(nulls, 0) / n
    share = sum(shares) / n
    p = float((1 + (null >= share).sum()) / (1 + len(null)))
    result.put(label.name, "selective_share", share)
    result.put(label.name, "selective_share_null", float(null.mean()))
    result.put(label.name, "p", p)
    result.put(label.name, "n_neurons", n)
    return np.concatenate(out), tuning.Share(share, null, p, n)


def run_embeddings(material: Material, result: Result, tuned: Result | None) -> None:
    """PCA, linear classification and LDA of the embedding tables."""
    names = np.array(material.names())
    animals = np.array(material.animals())
    result.facts["sessions"] = names.tolist()
    tables = []
    for which, title in (("neuron", "neuron embeddings"), ("coupling", "mixing embeddings")):
        try:
            x, session = material.table(which)
        except AnalysisError as e:
            if which == "neuron" or material.trained.model.transformer.coupling is not None:
                result.missing.append(f"{title}: {e}")
            continue
        tables.append((which, title, x, session))
    area = material.column(AREAS)
    for which, title, x, session in tables:
        alive = np.concatenate([material.alive(i) for i in np.unique(session)])
        _pca(result, which, title, x, session, alive)
        _classify(result, which, title, x[alive], names[session][alive], "session", None)
        if 1 < len(set(animals)) < len(names):
            _classify(
                result, which, title, x[alive], animals[session][alive], "animal", session[alive]
            )
        if area is not None:
            text = np.concatenate([area[1][i] for i in np.unique(session)])[alive]
            _classify(result, which, title, x[alive], text, area[0], None)
    if area is None and tables:
        result.missing.append(
            f"classification by area: the neuron tables have none of {', '.join(AREAS)}"
        )
    try:
        x, session = material.table("session")
        groups = None
        _classify(result, "session", "session embeddings", x, animals[session], "animal", groups)
    except AnalysisError as e:
        result.missing.append(f"session embeddings: {e}")
    _lda(material, result, tables, tuned)


def _pca(
    result: Result, which: str, title: str, x: np.ndarray, session: np.ndarray, alive: np.ndarray
) -> None:
    try:
        fitted = components.fit(x[alive], 10, fewer=True, what=f"PCA of {title}", rows="neurons",
                                columns="dimensions")  # fmt: skip
    except AnalysisError as e:
        result.missing.append(f"PCA of {title}: {e}")
        return
    result.arrays[f"{which}.scores"] = components.project(fitted, x).astype(np.float32)
    result.arrays[f"{which}.ratio"] = fitted.ratio
    result.arrays[f"{which}.session"] = session
    result.arrays[f"{which}.alive"] = alive
    participation = fitted.ratio.sum() ** 2 / np.square(fitted.ratio).sum()
    result.put(which, "variance_two_components", float(fitted.ratio[:2].sum()))
    result.put(which, "participation_first_ten", float(participation))
    result.put(which, "n_neurons", int(alive.sum()))


def _classify(
    result: Result, which: str, title: str, x: np.ndarray, y: np.ndarray, what: str, groups
) -> None:
    try:
        found = classification.classify(x, y, groups=groups, seed=result.seed, shuffles=20)
    except AnalysisError as e:
        result.missing.append(f"classification of the {what} from {title}: {e}")
        return
    key = f"{which}.{what}"
    result.keep(key, found)
    result.facts.setdefault("classified", []).append([which, what, title])
    method = f"{title} -> {what}"
    for metric, value in (
        ("balanced_accuracy", found.accuracy), ("chance", found.chance),
        ("majority", found.majority), ("null_mean", float(np.mean(found.null))),
        ("p", found.p), ("n", found.n),
    ):  # fmt: skip
        result.put(method, metric, value)


def _lda(material: Material, result: Result, tables: list, tuned: Result | None) -> None:
    """LDA on the signs of the d' of the labels, on all sessions and on each held out."""
    found = [] if tuned is None else tuned.facts.get("labels", [])
    if not found:
        result.missing.append("LDA of embeddings by tuning: no label has a d' (see tuning)")
        return
    for which, title, x, session in tables:
        keep = np.isin(tuned.arrays["session"], np.unique(session))
        ds = [tuned.arrays[f"label{k}.d"][keep] for k in range(min(len(found), 2))]
        y = embeddings.sign_classes(*ds) if len(ds) == 2 else _signs(ds[0])
        y = np.where(np.any([tuning.selective(d) for d in ds], axis=0), y, -1)
        names = "+".join(f["name"] for f in found[:2])
        try:
            model = embeddings.lda(x, y, seed=result.seed, shuffles=300)
        except AnalysisError as e:
            result.missing.append(f"LDA of {title} by {names}: {e}")
            continue
        result.keep(f"{which}.lda", model)
        method = f"{title}, LDA by {names}"
        result.put(method, "separation", model.separation)
        result.put(method, "separation_null", float(np.mean(model.null)))
        result.put(method, "p", model.p)
        result.put(method, "n_neurons", model.n)
        if len(ds) == 2:
            try:
                angle = embeddings.coding_angle(model.coordinates, *ds, seed=result.seed)
                result.keep(f"{which}.angle", angle)
                for metric in ("degrees", "low", "high"):
                    result.put(method, f"angle_{metric}", getattr(angle, metric))
            except AnalysisError as e:
                result.missing.append(f"angle between coding directions of {title}: {e}")
        if len(np.unique(session)) < 2:
            result.missing.append(f"LDA of {title} on a held-out session: there is one session")
            continue
        for i in np.unique(session):
            name = material.names()[i]
            try:
                rest = embeddings.lda(x[session != i], y[session != i], seed=result.seed,
                                      shuffles=0)  # fmt: skip
                out = embeddings.lda_apply(rest, x[session == i], y[session == i],
                                           seed=result.seed, shuffles=200)  # fmt: skip
            except AnalysisError as e:
                result.missing.append(f"LDA of {title} on held-out session {name}: {e}")
                continue
            where = {"session": name, "animal": material.animals()[i]}
            for metric in ("accuracy", "chance", "p", "n"):
                result.put(method, f"held_out_{metric}", getattr(out, metric), **where)


def _signs(d: np.ndarray) -> np.ndarray:
    """0 and 1 for the sign of d', -1 where it is not known."""
    return np.where(np.isfinite(d), (d > 0).astype(int), -1)
