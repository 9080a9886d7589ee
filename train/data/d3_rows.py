"""D3's rows as they are published: streamed from the hub, or from local parquet in the same schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from train.data.images import DataError
from train.data.records import is_odd
from train.hub import first_line, quiet_hub

HUB_PREFIX = "hf://"
GENERATORS = range(4)
REQUIRED = (
    "id",
    "original_prompt",
    "positive_prompt",
    "negative_prompt",
    "url",
    *(f"image_gen{k}" for k in GENERATORS),
    *(f"model_gen{k}" for k in GENERATORS),
)


class D3Rows:
    """D3's rows, image columns as {"bytes", "path"}: streamed from the hub or local parquet, from where `position` says
    (None = the first). `part` (i of n, from 1): every n-th file of the split.

    Raises DataError for a source that cannot be read or has another schema, also while rows are read.
    """

    def __init__(
        self,
        source: str,
        split: str = "train",
        position: Mapping[str, Any] | None = None,
        part: tuple[int, int] = (1, 1),
    ) -> None:
        import datasets  # noqa: PLC0415 - takes seconds, and folders need none of it

        self._source, self._errors = (
            source,
            (OSError, ValueError, TypeError, NotImplementedError, datasets.exceptions.DatasetsError),
        )
        with self._clear():
            if source.startswith(HUB_PREFIX):
                stream = datasets.load_dataset(source.removeprefix(HUB_PREFIX), split=split, streaming=True)
            else:
                path = Path(source)
                files = (
                    sorted(str(file) for file in path.rglob("*.parquet"))
                    if path.is_dir()
                    else [str(path)]
                    if path.is_file()
                    else []
                )
                if odd := [file for file in files if is_odd(Path(file))]:
                    raise DataError(f"{odd[0]} is no regular file: take it out of {source}")
                if not files:
                    raise DataError(f"{source} is neither hf://owner/name nor a parquet file nor a folder of them")
                stream = datasets.load_dataset("parquet", data_files={"train": files}, split="train", streaming=True)
            columns = stream.column_names or list(next(iter(stream), {}))
            if missing := [name for name in REQUIRED if name not in columns]:
                raise DataError(
                    f"{source}: columns {', '.join(missing)} are missing; expected the schema of elsaEU/ELSA_D3"
                )
            for name in [f"image_gen{k}" for k in GENERATORS]:
                stream = stream.cast_column(name, datasets.Image(decode=False))
            if part != (1, 1):
                if part[1] > stream.num_shards:
                    raise DataError(f"{source}: {stream.num_shards} files cannot be shared by {part[1]} parts")
                stream = stream.shard(num_shards=part[1], index=part[0] - 1)
            if position is not None:
                stream.load_state_dict(dict(position))
        self._stream = stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._clear():
            yield from self._stream

    def position(self) -> dict[str, Any]:
        """Where the next row is, as JSON: a run that goes on from here reads none of the files before it again."""
        state: dict[str, Any] = self._stream.state_dict()
        return state

    @contextmanager
    def _clear(self) -> Iterator[None]:
        try:
            with quiet_hub():
                yield
        except self._errors as error:
            if isinstance(error, DataError):
                raise
            schema = (
                "; expected the schema of elsaEU/ELSA_D3" if isinstance(error, TypeError | NotImplementedError) else ""
            )  # Arrow's, of casts
            raise DataError(f"{self._source}: {first_line(error)}{schema}") from error
