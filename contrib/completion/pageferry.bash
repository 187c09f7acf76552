# SPDX-License-Identifier: Apache-2.0
# Completion of pageferry(1) for bash.

_pageferry_options() {
	local common="--json --verbose --help --version"

	case $1 in
	probe) echo "$common" ;;
	serve) echo "--file --pid --match --listen --max-rate --max-sessions --once --control $common" ;;
	attach) echo "--pid --match --from --resume --max-rate --bulk --control $common" ;;
	receive) echo "--qmp --listen --max-rate --control $common" ;;
	migrate) echo "--qmp --to --postcopy --bulk --control $common" ;;
	status) echo "--control $common" ;;
	esac
}

_pageferry() {
	local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}

	COMPREPLY=()
	if [ "$COMP_CWORD" -eq 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W "probe serve attach receive migrate status --help --version" -- "$word")
		return
	fi
	case $previous in
	--file | --qmp | --control)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
		;;
	--pid)
		mapfile -t COMPREPLY < <(cd /proc && compgen -W "$(echo [0-9]*)" -- "$word")
		;;
	--match | --listen | --from | --to | --max-rate | --max-sessions | --bulk) ;;
	*)
		mapfile -t COMPREPLY < <(compgen -W "$(_pageferry_options "${COMP_WORDS[1]}")" -- "$word")
		;;
	esac
}

complete -F _pageferry pageferry
