#!/bin/sh
# What the Makefile goes by: prints "card NAME" where nvidia-smi names an NVIDIA card, "mute WHY" where this machine has one
# but nvidia-smi does not answer for it, and nothing where there is none. ROOT, for tests, is where /proc, /dev and /sys lie.
#
#   find-gpu.sh [ROOT]

root=${1:-}

# A trace that a card or its driver leaves even where the driver does not work.
trace() {
    for device in "$root"/sys/bus/pci/devices/*; do
        # Vendor NVIDIA, and a display controller: their cards bring audio devices too.
        if [ "$(cat "$device/vendor" 2>/dev/null)" = 0x10de ]; then
            case $(cat "$device/class" 2>/dev/null) in
            0x03*) echo "the PCI device ${device##*/}" && return ;;
            esac
        fi
    done
    for file in "$root"/dev/nvidia[0-9]* "$root"/dev/nvidiactl "$root"/proc/driver/nvidia; do
        [ -e "$file" ] && echo "${file#"$root"}" && return
    done
}

if command -v nvidia-smi >/dev/null 2>&1; then
    # A driver that hangs answers never.
    said=$(timeout 30 nvidia-smi --query-gpu=name --format=csv,noheader 2>&1)
    status=$?
    first=$(printf '%s\n' "$said" | sed -n '/[^[:space:]]/{p;q;}')
    if [ $status -eq 0 ] && [ -n "$first" ]; then
        echo "card $first"
        exit
    fi
    found=$(trace)
    [ $status -eq 124 ] && first="no answer within 30 seconds"
    case ${found:+found}$first in
    "No devices were found"*) ;; # the driver works, and there is no card
    *) echo "mute ${found:-nvidia-smi} is here, but nvidia-smi fails: ${first:-it names no card} (exit status $status)" ;;
    esac
else
    found=$(trace)
    if [ -n "$found" ]; then
        echo "mute $found is here, but nvidia-smi is not on the PATH"
    fi
fi
