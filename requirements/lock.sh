#!/usr/bin/env bash
# Writes the lock files from pyproject.toml and the .in files: `make lock` (CONTRIBUTING.md, "Upgrade a dependency").
#
#   UV        the program uv
#   UPGRADE   which packages get their newest version: names, or "all". The others keep theirs while it still fits.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

upgrade=()
for name in ${UPGRADE:-}; do
	if [ "$name" = all ]; then upgrade+=(--upgrade); else upgrade+=(--upgrade-package "$name"); fi
done

# Says from which requirements a lock was made. tests/test_requirements.py compares it.
stamp="# By \`make lock\`, from requirements $(python3 requirements/fingerprint.py)"

# resolve OUTPUT ARGUMENT...: versions in OUTPUT are kept where they fit. Only wheels: a source package runs code of its
# own, with whatever it needs for that and without a hash.
resolve() {
	"${UV:-uv}" pip compile --quiet --universal --python-version 3.11 --only-binary :all: --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --output-file "$@"
}

# save LOCK OUTPUT: without the marker that every line has, which is pyproject.toml's tool.uv.environments.
save() {
	local cpython="platform_python_implementation == 'CPython' and sys_platform == 'linux'"
	local machines="\(\(platform_machine == 'aarch64' and $cpython\) or \(platform_machine == 'x86_64' and $cpython\)\)"
	{
		echo "$stamp"
		sed -E "s/ and $machines//; s/ ; python_full_version < '3\.14'( \\\\)$/\1/" "$2"
	} >"$work/saved"
	mv "$work/saved" "$1"
	echo "guard: $1: $(grep -c '^[a-z0-9]' "$1") packages"
}

# known LOCK...: what is locked now
known() { cat "$@" 2>/dev/null || true; }

# names LOCK: --no-emit-package for each of its packages
names() { sed -nE 's/^([a-z0-9][a-z0-9._-]*)==.*/--no-emit-package \1/p' "$1" | sort -u; }

# PyTorch's index has the CPU build of torch, under a version that no other index knows. It needs what the version
# without the build needs, except CUDA (pyproject.toml, tool.uv).
sed 's/+cpu$//' requirements/cpu-torch.txt >"$work/cpu-torch.txt"

# sources_of ENGINE
sources_of() {
	echo "pyproject.toml requirements/build.in --extra $1"
	if [ "$1" = cpu ]; then
		echo "--override $work/cpu-torch.txt --no-emit-package torch --no-emit-package torchvision"
	fi
}

for engine in cpu cuda; do
	lock=requirements/$engine
	read -r -d '' -a sources < <(sources_of "$engine") || true
	# First the whole of what is tested: what is served is a part of it, in the same versions.
	known "$lock.txt" "$lock-dev.txt" >"$work/tested.txt"
	resolve "$work/tested.txt" "${sources[@]}" --extra dev "${upgrade[@]}"
	for extra in "" dev bench; do
		cp "$work/tested.txt" "$work/part.txt"
		# shellcheck disable=SC2046
		resolve "$work/part.txt" "${sources[@]}" ${extra:+--extra "$extra" $(names "$lock.txt")} \
			--constraint "$work/tested.txt"
		save "$lock${extra:+-$extra}.txt" "$work/part.txt"
	done
done

for source in requirements/{uv,tools}.in tests/clients/*/requirements.in benchmarks/environments/*.in; do
	known "${source%.in}.txt" >"$work/part.txt"
	resolve "$work/part.txt" "$source" "${upgrade[@]}"
	save "${source%.in}.txt" "$work/part.txt"
done

# What was resolved for all at once is held to each Python and machine on its own: the locks have all that it needs, and
# wheels of it. uv reads the needs of one wheel of a package for all, and some packages have others on another machine.
for engine in cpu cuda; do
	lock=requirements/$engine
	read -r -d '' -a sources < <(sources_of "$engine") || true
	cat "$lock.txt" "$lock-dev.txt" >"$work/tested.txt"
	for python in 3.11 3.12 3.13; do
		for machine in x86_64 aarch64; do
			"${UV:-uv}" pip compile --quiet --no-annotate --no-header --only-binary :all: \
				--python-version "$python" --python-platform "$machine-manylinux_2_34" \
				--constraint "$work/tested.txt" --output-file "$work/here.txt" "${sources[@]}" --extra dev
			if unknown=$(sed 's/ ;.*//' "$work/here.txt" | grep -vxFf <(sed -nE 's/^([^ ]+==[^ ]+).*/\1/p' "$work/tested.txt")); then
				echo "guard: $lock.txt has no $unknown, which Python $python on $machine needs." >&2
				echo "guard: see tool.uv.dependency-metadata in pyproject.toml" >&2
				exit 1
			fi
			rm "$work/here.txt"
		done
	done
done
