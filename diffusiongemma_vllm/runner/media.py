"""Media of a request: loaded by vLLM's rules for URLs, refused by its header, decoded later.

vLLM's own loading decodes a file before any model's processor sees it.  Here a file stays bytes,
which also name it in vLLM's caches: a picture that is cached is not decoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaConnector, MediaIO

from diffusiongemma_vllm.media.images import check_image
from diffusiongemma_vllm.media.limits import IMAGE_BYTES, VIDEO_BYTES, MediaError, check_size


@dataclass(frozen=True)
class Encoded:
    """A file whose header was looked at.  kind: image or video."""

    kind: str
    data: bytes


@dataclass(frozen=True)
class Kind:
    """name: image or video.  limit: bytes of a file.  check: raises MediaError by its header."""

    name: str
    limit: int
    check: Callable[[bytes], None]

    def accept(self, data: bytes) -> Encoded:
        """Raises VLLMValidationError for a file that will not be decoded."""
        try:
            self.check(data)
        except MediaError as error:
            raise refused(error, self.name) from None
        return Encoded(self.name, data)


def _check_video(data: bytes) -> None:
    # PyAV is loaded when the first video comes.
    from diffusiongemma_vllm.media.videos import check_video

    check_video(data)


IMAGE = Kind("image", IMAGE_BYTES, check_image)
VIDEO = Kind("video", VIDEO_BYTES, _check_video)


def refused(error: ValueError, name: str) -> VLLMValidationError:
    return VLLMValidationError(f"{name}: {error}", parameter=name)


class FileIO(MediaIO[Encoded]):
    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def get_max_bytes(self) -> int:
        return self.kind.limit

    def load_bytes(self, data: bytes) -> Encoded:
        return self.kind.accept(data)

    def load_base64(self, media_type: str, data: str) -> Encoded:
        import pybase64

        try:
            check_size(len(data) * 3 // 4, self.kind.limit, self.kind.name)
            decoded = pybase64.b64decode(data, validate=True)
        except MediaError as error:
            raise refused(error, self.kind.name) from None
        except ValueError as error:
            name = self.kind.name
            raise refused(ValueError(f"the data URL is no base64 ({error})"), name) from None
        return self.load_bytes(decoded)

    def load_file(self, filepath: Path) -> Encoded:
        try:
            check_size(filepath.stat().st_size, self.kind.limit, self.kind.name)
            data = filepath.read_bytes()
        except OSError as error:
            reason = ValueError(f"the file cannot be read ({error.strerror})")
            raise refused(reason, self.kind.name) from None
        except MediaError as error:
            raise refused(error, self.kind.name) from None
        return self.load_bytes(data)


class FileConnector(MediaConnector):
    """vLLM's rules for domains, local paths and redirects, and our files."""

    def _check_url(self, url: str, kind: Kind) -> None:
        if self.media_io_kwargs:
            raise VLLMValidationError(
                "media_io_kwargs: DiffusionGemma's files are read by the plugin; drop them and "
                "use mm_processor_kwargs", parameter="media_io_kwargs",
            )
        if not isinstance(url, str):
            raise refused(ValueError(f"a URL must be a string, got {url!r:.80}"), kind.name)
        scheme, _, rest = url.partition(":")
        scheme = scheme.lower()
        if scheme == "data":
            head, comma, _ = rest.partition(",")
            if not comma or not head.endswith(";base64"):
                reason = ValueError("a data URL must be data:<type>;base64,<data>")
                raise refused(reason, kind.name)
        elif scheme == "file" and self.allowed_local_media_path is None:
            reason = ValueError("local files need the server's --allowed-local-media-path")
            raise refused(reason, kind.name)

    def _fetch(self, url: str, kind: Kind, timeout: int) -> Any:
        self._check_url(url, kind)
        return self.load_from_url(url, FileIO(kind), fetch_timeout=timeout)

    async def _fetch_async(self, url: str, kind: Kind, timeout: int) -> Any:
        self._check_url(url, kind)
        return await self.load_from_url_async(url, FileIO(kind), fetch_timeout=timeout)

    def fetch_image(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        from vllm import envs

        return self._fetch(image_url, IMAGE, envs.VLLM_IMAGE_FETCH_TIMEOUT)

    async def fetch_image_async(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        from vllm import envs

        return await self._fetch_async(image_url, IMAGE, envs.VLLM_IMAGE_FETCH_TIMEOUT)

    def fetch_video(self, video_url: str, **options: Any) -> Any:
        from vllm import envs

        return self._fetch(video_url, VIDEO, envs.VLLM_VIDEO_FETCH_TIMEOUT)

    async def fetch_video_async(self, video_url: str, **options: Any) -> Any:
        from vllm import envs

        return await self._fetch_async(video_url, VIDEO, envs.VLLM_VIDEO_FETCH_TIMEOUT)


def connector(parser: Any) -> FileConnector:
    """parser: vLLM's parser of a message's content."""
    tracker = parser._tracker
    return FileConnector(
        media_io_kwargs=tracker.media_io_kwargs,
        allowed_local_media_path=tracker.allowed_local_media_path,
        allowed_media_domains=tracker.allowed_media_domains,
    )
