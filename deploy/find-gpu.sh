#!/bin/sh
# Finds the GPU for the Makefile. Prints "card NAME" if nvidia-smi names an NVIDIA card, "mute WHY" if this machine has a
# card that nvidia-smi does not report, and nothing if there is none. ROOT, for tests, is the folder of /proc, /dev and /sys.
#
#   find-gpu.sh [ROOT]

root=${1:-}

# A trace of a card or its driver that exists even if the driver does not work.
trace() {
    for device in "$root"/sys/bus/pci/devices/*; do
        # Vendor NVIDIA, and a display controller: their cards have audio devices too.
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
    # If the driver hangs, nvidia-smi never answers.
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
