#!/bin/sh
# Make sure that the browser tests find a Chromium: one on PATH, else Debian's own when root, else Playwright's.
# Usage: tools/ensure_chromium.sh PYTHON, where PYTHON has Playwright installed.
set -eu

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" > /dev/null; then
        exit 0
    fi
done

if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    if apt-get -qq update && apt-get -qq install -y chromium > /dev/null && command -v chromium > /dev/null; then
        exit 0
    fi
fi

exec "$1" -m playwright install chromium
