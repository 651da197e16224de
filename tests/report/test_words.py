"""What a report says in words."""

from types import SimpleNamespace

from calm_jax.report import sections


def test_the_weights_of_smooth_and_rough_traces_are_told():
    one = {"network": [0.5, 0.5, 0.5], "mean": [0.0, 0.0, 0.0], "copy_last": [0.25, 0.2, 0.1]}
    run = lambda weights: SimpleNamespace(
        stages={"evaluation": {"weights": weights}},
        experiment=SimpleNamespace(forecasting=SimpleNamespace(context=48)),
    )
    assert sections._weights(run({})) == ""
    told = sections._weights(run({"48": one, "36": one}))
    assert "step ahead: network 0.50, 0.50, 0.50; copy last 0.25, 0.20, 0.10." in told
    assert "rough" not in told and "mean" not in told
    told = sections._weights(run({"48": one, "48, rough": {"network": [1.0, 1.0, 1.0]}}))
    assert "of smooth traces: network 0.50" in told
    assert told.endswith("Of traces rough within the context: network 1.00, 1.00, 1.00.")
