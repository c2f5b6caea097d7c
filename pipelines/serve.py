"""Answer requests over HTTP with a trained model: /predict, /stream, and a page at /."""

import os
from typing import TYPE_CHECKING, Any

from longseq.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Where the token may stand instead of in the command, which other users of the machine can read.
TOKEN = "LONGSEQ_SERVE_TOKEN"


def run(cfg: "DictConfig") -> dict[str, Any]:
    """Serves a model until it is stopped.

    Args:
        cfg: `model` (or `run`), `host`, `port`, `device`, and the limits of configs/serve.yaml.

    Returns:
        `exit_code`.

    Raises:
        ConfigError: for options that make no sense, a port that is taken, or if the server's packages are not installed.
        CheckpointError: if the folder holds no usable model.
    """
    if cfg.model is None and cfg.run is None:
        raise ConfigError("name a trained model: longseq serve model=<run folder or model folder>")
    if not isinstance(cfg.port, int) or not 0 <= cfg.port <= 65535:
        raise ConfigError(f"port must be a number from 0 (any free one) to 65535, found {cfg.port!r}")
    try:
        import litserve  # noqa: F401
        import python_multipart  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"longseq serve needs the package {error.name}: pip install 'longseq[serve]'") from None
    from longseq.pipelines.serving.reader import Served
    from longseq.pipelines.serving.server import ModelServer
    from longseq.pipelines.serving.worker import ModelAPI

    served = Served(cfg)
    token = os.environ.get(TOKEN) if cfg.token is None else str(cfg.token)
    api = ModelAPI(
        str(served.folder),
        served.options,
        max_batch_size=int(cfg.max_batch_size),
        max_batch_tokens=int(cfg.max_batch_tokens),
        batch_wait_s=float(cfg.batch_wait_s),
        threads=cfg.threads,
    )
    server = ModelServer(api, served, token or None)

    def announce(url: str) -> None:
        info = served.info()
        about = f"domain={info['domain']} task={info['task']} backbone={info['backbone']} on {info['device']}"
        print(f"longseq serve  {about}\n  page      {url}/\n  requests  {url}/predict  ({url}/docs describes them)", flush=True)
        if cfg.host not in ("127.0.0.1", "::1", "localhost") and not token:
            print(f"  note      anybody who reaches {cfg.host} can use it: set a token= or {TOKEN}", flush=True)
        print("  Ctrl-C stops it once all it has accepted is answered", flush=True)

    return {"exit_code": server.serve(str(cfg.host), cfg.port, float(cfg.grace_s), announce)}
