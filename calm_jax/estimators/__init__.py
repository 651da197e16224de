"""CalM behind the interface of scikit-learn: `fit`, `predict`, `transform`, `score`."""

from calm_jax.estimators.decoder import CalMDecoder
from calm_jax.estimators.embedding import CalMEmbedding
from calm_jax.estimators.forecaster import CalMForecaster

__all__ = ["CalMDecoder", "CalMEmbedding", "CalMForecaster"]
