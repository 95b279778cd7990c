"""Video files made here: the frames at the right times, and what is refused."""

from io import BytesIO

import av
import numpy as np
import pytest
from clips import clip, flat
from hostile import videos

from diffusiongemma_vllm.media import videos as module
from diffusiongemma_vllm.media.limits import VIDEO_BYTES, MediaError
from diffusiongemma_vllm.media.options import SPREAD, VideoOptions
from diffusiongemma_vllm.media.pixels import Tiling
from diffusiongemma_vllm.media.videos import check_video, read_video, sample_times

TILING = Tiling()
ASKED = VideoOptions()


def shade(k):
    """A grey for the k-th second or frame; two of them are 7 apart."""
    return (20 + 7 * (k % 32),) * 3


def shades(shown):
    """Which greys the frames of a clip have."""
    return [round((float(frame.mean()) - 20) / 7) for frame in shown.values]


@pytest.mark.parametrize("container", ["mp4", "webm"])
@pytest.mark.parametrize("rate", [24, 30])
@pytest.mark.parametrize("seconds", [5, 60])
def test_a_frame_a_second(container, rate, seconds):
    frames = (flat(shade(k // rate)) for k in range(rate * seconds))
    shown = read_video(clip(frames, container=container, rate=rate), ASKED, TILING)
    assert shown.seconds == tuple(range(seconds))
    assert shades(shown) == [k % 32 for k in range(seconds)]
    assert (shown.rows, shown.columns) == (7, 9) and shown.values.dtype == np.uint8


@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_longer_videos_are_refused_or_spread(container):
    data = clip((flat(shade(k // 2)) for k in range(180)), container=container, rate=2)
    with pytest.raises(MediaError, match=r'lasts 90.0 s, which is 90 frames .*"longer": "spread"'):
        read_video(data, ASKED, TILING)
    shown = read_video(data, VideoOptions(longer=SPREAD, num_frames=9), TILING)
    assert shown.seconds == tuple(range(0, 90, 10))
    assert shades(shown) == [k % 32 for k in range(0, 90, 10)]


@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_variable_rates_show_what_is_on_the_screen(container):
    times = [0, 0.5, 0.9, 2.2, 2.3, 5.5]
    data = clip((flat(shade(k)) for k in range(6)), container=container, times=times)
    shown = read_video(data, ASKED, TILING)
    assert shown.seconds == (0, 1, 2, 3, 4, 5)
    assert shades(shown) == [0, 2, 2, 4, 4, 4]


def test_a_video_that_begins_late_begins_at_zero():
    times = [7 + k / 4 for k in range(12)]
    shown = read_video(clip((flat(shade(k)) for k in range(12)), container="webm", times=times),
                       ASKED, TILING)
    assert shown.seconds == (0, 1, 2) and shades(shown) == [0, 4, 8]


def trimmed(data, seconds):
    """The file with an edit list that cuts its start off, in front of which no key frame stands."""
    result = BytesIO()
    options = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    with av.open(BytesIO(data)) as old, av.open(result, "w", "mp4", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                shift = int(seconds / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                new.mux(packet)
    return result.getvalue()


def test_a_start_that_is_cut_off_is_not_counted():
    data = clip([flat(shade(k)) for k in range(24)], rate=4, g="99")
    assert read_video(data, ASKED, TILING).seconds == (0, 1, 2, 3, 4, 5)
    shown = read_video(trimmed(data, 3), ASKED, TILING)
    assert shown.seconds == (0, 1, 2) and shades(shown) == [12, 16, 20]


def test_other_rates_and_budgets():
    data = clip((flat(shade(k)) for k in range(10)), rate=5)
    shown = read_video(data, VideoOptions(fps=2.5, max_soft_tokens=140), TILING)
    assert shown.seconds == (0, 0, 0, 1, 1) and shades(shown) == [0, 2, 4, 6, 8]
    assert 70 < shown.rows * shown.columns <= 140


def test_one_frame():
    shown = read_video(clip([flat(shade(3))]), ASKED, TILING)
    assert shown.seconds == (0,) and shades(shown) == [3]


def test_ntsc_rates_do_not_drift():
    from fractions import Fraction

    rate = Fraction(30_000, 1001)
    data = clip((flat(shade(int(k / rate))) for k in range(900)), rate=rate)
    shown = read_video(data, ASKED, TILING)
    # the frame that stands at a second began up to a frame before it
    assert shown.seconds == tuple(range(31))
    assert all(k - now in (0, 1) for now, k in zip(shades(shown), range(31), strict=True))


def test_rotation_is_undone():
    """A phone's upright video: wide frames and a matrix that turns them."""
    wide = flat((0, 0, 0), (96, 48))
    wide[:, :48] = 200  # left
    shown = read_video(clip([wide] * 3, rate=1), ASKED, TILING)
    assert shown.columns > shown.rows

    frame = av.VideoFrame.from_ndarray(wide, format="rgb24")
    turned = {0: module._picture(frame)}
    for angle in (90, 180, 270):
        class Turned:
            rotation = angle

            def to_image(self):
                return frame.to_image()

        turned[angle] = module._picture(Turned())
    assert turned[0].size == (96, 48) and turned[90].size == turned[270].size == (48, 96)
    assert turned[0].getpixel((3, 9))[0] > 100 > turned[180].getpixel((3, 9))[0]
    assert turned[90].getpixel((9, 90))[0] > 100 > turned[270].getpixel((9, 90))[0]


@pytest.mark.parametrize("name", videos())
def test_refused(name):
    with pytest.raises(MediaError, match="video|pictures"):
        read_video(videos()[name], ASKED, TILING)


def test_limits(monkeypatch):
    data = clip([flat(shade(k)) for k in range(12)], rate=12)
    with pytest.raises(MediaError, match=f"more than the {VIDEO_BYTES:,}"):
        check_video(b"\0\0\0\x18ftyp" + bytes(VIDEO_BYTES))
    monkeypatch.setattr(module, "VIDEO_PACKETS", 10)
    with pytest.raises(MediaError, match="more than 10 packets"):
        read_video(data, ASKED, TILING)
    monkeypatch.setattr(module, "FRAME_BYTES", 64 * 48)
    with pytest.raises(MediaError, match="64 x 48 pixels, 4,608 bytes, more than the 3,072"):
        check_video(data)


def test_frames_beyond_those_shown_are_not_drawn(monkeypatch):
    drawn, picture = [], module._picture
    monkeypatch.setattr(module, "_picture", lambda frame: drawn.append(1) or picture(frame))
    read_video(clip([flat(shade(k)) for k in range(72)]), ASKED, TILING)
    assert len(drawn) == 3


def test_sample_times():
    assert sample_times(0.01, ASKED) == [0.0]
    assert sample_times(3.0, ASKED) == [0.0, 1.0, 2.0]
    assert len(sample_times(60.0, ASKED)) == 60
    assert sample_times(8.0, VideoOptions(num_frames=4, longer=SPREAD)) == [0.0, 2.0, 4.0, 6.0]
