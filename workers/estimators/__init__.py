"""Estimators that fit into scikit-learn."""

from importlib.util import find_spec

from ntkpipe.configs.errors import ConfigError

if find_spec("sklearn") is None:
    raise ConfigError("estimators are classes of scikit-learn, which is missing: pip install 'ntkpipe[estimators]'")
