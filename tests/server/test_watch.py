"""The page in a real browser, in front of the server on the miniature."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import browser, complaints, contrasts, look_like, unnamed, until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from diffusiongemma_vllm.cli.server import _free_port

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

COUNT = "Count from 001 to 120."
SHOTS = os.environ.get("DIFFUSIONGEMMA_SHOTS")  # a folder for README's pictures
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def address(server, user_environment):
    """Of the page, served by the command."""
    port = _free_port()
    command = [Path(sys.executable).with_name("diffusiongemma-vllm"), "watch", "--url", server.url,
               "--port", str(port)]
    process = subprocess.Popen(command, env=user_environment, stdout=subprocess.PIPE, text=True)
    try:
        said = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in said
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def driver():
    with browser() as found:
        look_like(found)
        yield found


@pytest.fixture
def page(driver, address, model):
    """Fresh, at temperature 0, in the chat; nothing may be amiss in the console."""
    driver.get("about:blank")
    driver.get(address)
    driver.execute_script("localStorage.clear()")
    driver.refresh()
    until(lambda: driver.find_element(By.ID, "model").get_attribute("title") == model)
    driver.execute_script("document.querySelector('[name=temperature]').value = 0")
    complaints(driver)
    yield driver
    assert complaints(driver) == []


def keys(page, *pressed):
    page.switch_to.active_element.send_keys(*pressed)


def one(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def text(page, selector):
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].at(-1)?.textContent ?? ''", selector
    )


def done(page, turns=1):
    """Wait for so many answers to be whole."""
    until(lambda: len(page.find_elements(By.CSS_SELECTOR, ".cost:not(:empty)")) == turns)


def shoot(page, name):
    if SHOTS:
        page.save_screenshot(f"{SHOTS}/{name}.png")


def test_a_canvas_settles(page, chat):
    """By keyboard alone: skip to the prompt, ask, look at the steps."""
    keys(page, Keys.TAB)
    keys(page, Keys.ENTER)
    assert page.switch_to.active_element.get_attribute("id") == "prompt"
    keys(page, COUNT, Keys.ENTER)
    until(lambda: "step" in text(page, ".canvas .status"))
    done(page)
    plain = chat(COUNT).choices[0]
    report = plain.model_extra["diffusion"]
    steps = [canvas["steps"] for canvas in report["canvases"]]
    assert text(page, ".turn.model .words") == plain.message.content
    said = text(page, ".cost")
    assert f"{len(steps)} canvases of {' + '.join(map(str, steps))} steps" in said
    assert f"{report['forwards']} forwards" in said
    canvas = one(page, ".canvas")
    assert not canvas.get_attribute("open")
    one(page, ".canvas summary").send_keys(Keys.ENTER)
    slider = one(page, ".canvas input[type=range]")
    assert int(slider.get_attribute("max")) == sum(steps) - 1
    slider.send_keys(Keys.HOME)
    assert text(page, ".canvas .status").startswith("canvas 1 · step 1 ")
    assert slider.get_attribute("aria-valuetext") == text(page, ".canvas .status")
    unsettled = page.find_elements(By.CSS_SELECTOR, ".tokens [class^=c]")
    assert unsettled and len(page.find_elements(By.CSS_SELECTOR, ".tokens span")) == 256
    guess = text(page, ".tokens")
    one(page, "#noise").send_keys(Keys.SPACE)
    assert text(page, ".tokens") != guess
    slider.send_keys(Keys.END)
    assert not page.find_elements(By.CSS_SELECTOR, ".tokens .fixed.c0")


def test_pictures(page):
    """A settling canvas, wide and narrow, light and dark; nothing runs over the side."""
    one(page, "[name=diffusion_entropy_bound]").send_keys("0.01")  # not everything at once
    one(page, "#prompt").send_keys(COUNT, Keys.ENTER)
    done(page)
    one(page, ".canvas summary").send_keys(Keys.ENTER)
    slider = one(page, ".canvas input[type=range]")
    slider.send_keys(Keys.HOME)
    for width, dark in ((1200, False), (1200, True), (390, False), (390, True)):
        look_like(page, width=width, dark=dark)
        until(lambda width=width: page.execute_script("return innerWidth") == width)
        page.execute_script("document.getElementById('settings').open = innerWidth > 800")
        for view in ("chat", "infill", "server"):
            page.execute_script("location.hash = arguments[0]", view)
            until(lambda view=view: one(page, f"#{view}").is_displayed())
            sizes = "return [document.documentElement.scrollWidth, innerWidth]"
            wide, room = page.execute_script(sizes)
            assert wide <= room == width
            if view == "chat":
                page.execute_script("document.querySelector('.canvas').scrollIntoView()")
            shoot(page, f"{view}-{width}-{'dark' if dark else 'light'}")
    look_like(page)


@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read(page, dark):
    """WCAG AA, and a name for every control."""
    look_like(page, dark=dark)
    pairs = [("text", "page"), ("text", "card"), ("text", "user"), ("soft", "page"),
             ("soft", "card"), ("on-accent", "accent"), ("bad", "bad-page"), ("text", "c4"),
             *(("unsettled", f"c{i}") for i in range(5))]
    assert min(contrasts(page, pairs)) >= 4.5
    for view in ("chat", "infill", "server"):
        page.execute_script("location.hash = arguments[0]", view)
        assert unnamed(page) == []
    one(page, "#theme").send_keys(Keys.ENTER)
    scheme = page.execute_script("return getComputedStyle(document.documentElement).colorScheme")
    assert scheme == ("light" if dark else "dark")
    look_like(page)


def test_a_tool_and_a_thought(page):
    one(page, "#example").send_keys(Keys.ENTER)
    one(page, "#prompt").send_keys("What is the weather in paris?", Keys.ENTER)
    done(page)
    assert text(page, ".calls").lower() == 'get_weather({"city": "paris"})'
    one(page, ".results input").send_keys("sunny, 21 degrees", Keys.ENTER)
    done(page, 2)
    assert "sunny" in text(page, ".turn.model .words")
    one(page, "#clear").send_keys(Keys.ENTER)
    page.execute_script("document.querySelector('[name=tools]').value = ''")
    one(page, "#thinking").send_keys(Keys.SPACE)
    one(page, "#prompt").send_keys("What is 27 + 38?", Keys.ENTER)
    done(page)
    assert text(page, ".turn.model .words") == "65" and text(page, ".thought div").strip()


def test_infill(page):
    one(page, "nav a[href='#infill']").send_keys(Keys.ENTER)
    template = one(page, "#template")
    until(template.is_displayed)
    template.clear()
    template.send_keys("001 002 003 ", Keys.TAB)
    keys(page, Keys.BACKSPACE, "8", Keys.TAB)
    keys(page, Keys.ENTER)  # the button that inserts a gap
    template.send_keys(" 006 007 008")
    assert template.get_attribute("value") == "001 002 003 [[8]] 006 007 008"
    one(page, "#fill button[type=submit]").send_keys(Keys.ENTER)
    until(lambda: text(page, "#filled mark") or text(page, "#fillproblem"))
    assert text(page, "#fillproblem") == ""
    whole, gap = text(page, "#filled .words"), text(page, "#filled mark")
    assert whole == f"001 002 003 {gap} 006 007 008"
    template.clear()
    template.send_keys("no gap")
    one(page, "#fill button[type=submit]").send_keys(Keys.ENTER)
    until(lambda: "no gap to fill" in text(page, "#fillproblem"))


def test_an_image_goes_with_the_message(page, tmp_path):
    """The server answers, or says why not, where it is read out."""
    picture = tmp_path / "dot.png"
    picture.write_bytes(DOT)
    one(page, "#file").send_keys(str(picture))
    until(lambda: page.find_elements(By.CSS_SELECTOR, "#images img[alt='dot.png']"))
    one(page, "[name=max_tokens]").send_keys("8")
    one(page, "#prompt").send_keys("What is it?", Keys.ENTER)
    assert page.find_elements(By.CSS_SELECTOR, ".turn.user img")
    until(lambda: text(page, "#problem") or text(page, ".cost"))
    complaints(page)  # a refusal is in the console too


def test_escape_stops(page, at_rest):
    one(page, "[name=diffusion_entropy_bound]").send_keys("0.01")  # or it is over too soon
    one(page, "#prompt").send_keys("Count from 001 to 170.", Keys.ENTER)
    until(lambda: one(page, "#stop").is_displayed())
    keys(page, Keys.ESCAPE)
    until(lambda: not one(page, "#stop").is_displayed())
    at_rest()
    assert text(page, "#problem") == ""


def test_the_server_view(page, server):
    one(page, "nav a[href='#server']").send_keys(Keys.ENTER)
    until(lambda: "tokens of text" in text(page, "#numbers"))
    shown = page.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('#numbers div')].map("
        "(one) => [...one.children].map((part) => part.textContent)))"
    )
    canvases = server.metrics()["vllm:diffusion_canvases_total"]
    assert int(shown["canvases"]) == canvases > 0
    assert one(page, "#steps").get_attribute("aria-label") != "no canvas yet"
