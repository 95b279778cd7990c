"""Debian's Chromium without a screen."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager

import pytest

REQUIRED = "DIFFUSIONGEMMA_TEST_BROWSER"  # set to 1 where a missing browser is a failure
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--disable-dev-shm-usage",
)


@contextmanager
def browser():
    """A WebDriver with the methods below.  Skips where Chromium is not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        said = "no Chromium: apt-get install chromium chromium-driver"
        assert os.environ.get(REQUIRED) != "1", said
        pytest.skip(said)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    found = webdriver.Chrome(options=options, service=Service(driver))
    found.set_script_timeout(60)
    try:
        yield found
    finally:
        found.quit()


def look_like(driver, *, width=1200, height=760, dark=False):
    """The size of the page, and what the user prefers."""
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False,
    })
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})


def until(check, *, seconds=120):
    """Wait for something true, however slow the machine is."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def complaints(driver):
    """What the page's console says that is no mere note, since it was last asked."""
    return [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]


def unnamed(driver):
    """Controls that a screen reader has no name for."""
    roles = {"button", "checkbox", "link", "slider", "spinbutton", "textbox", "combobox"}
    nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [
        node["role"]["value"] for node in nodes
        if not node["ignored"] and node["role"]["value"] in roles
        and not node.get("name", {}).get("value", "").strip()
    ]


CONTRAST = """
const style = getComputedStyle(document.documentElement);
const light = (name) => {
  const hex = style.getPropertyValue(`--${name}`).trim().slice(1);
  const part = (i) => {
    const c = parseInt(hex.slice(i, i + 2), 16) / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  };
  return 0.2126 * part(0) + 0.7152 * part(2) + 0.0722 * part(4);
};
return arguments[0].map(([a, b]) => {
  const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
});
"""


def contrasts(driver, pairs):
    """WCAG's contrast of each pair of the page's colours."""
    return driver.execute_script(CONTRAST, pairs)
