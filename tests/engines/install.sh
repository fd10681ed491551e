#!/usr/bin/env bash
# What the tests of engines need beside Python packages: Slurm's daemons and munge, of Debian or Ubuntu. Where they cannot
# be installed, for want of rights or of a mirror, that is said here, and those tests say that they are skipped.
set -euo pipefail
if command -v slurmd >/dev/null && command -v slurmctld >/dev/null && command -v munged >/dev/null; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "slurmd, slurmctld or munged is missing and cannot be installed here: tests of Slurm will be skipped" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; }; then
    echo "apt-get could not install Slurm: its tests will be skipped" >&2
fi
