# SPDX-License-Identifier: Apache-2.0
# Completion of pageferry(1) for bash.

_pageferry_options() {
	local common="--json --verbose --help --version"

	case $1 in
	probe) echo "$common" ;;
	serve) echo "--file --pid --match --listen --resume --tls --psk --plaintext --tls-peer --max-rate --max-sessions --once --checksum --metrics --control $common" ;;
	attach) echo "--pid --match --from --recover --supervise --on-lost --source-lost --checksum --verify --tls --psk --plaintext --tls-hostname --max-rate --bulk --no-large-pages --trace --no-trace --metrics --control $common" ;;
	handler) echo "--socket --file --from --tls --psk --plaintext --tls-hostname --record --replay --max-vms --user --max-rate --config --metrics --control $common" ;;
	criu) echo "--pid --match --listen --header --plaintext --once --control $common" ;;
	cloud-hypervisor) echo "--snapshot --to --paused --tls --tls-hostname --plaintext --control $common" ;;
	receive) echo "--qmp --listen --recover --supervise --on-lost --source-lost --checksum --verify --tls --psk --plaintext --tls-peer --max-rate --no-large-pages --trace --no-trace --metrics --control $common" ;;
	migrate) echo "--qmp --to --postcopy --resume --pause --continue --cancel --supervise --checksum --tls --psk --plaintext --tls-hostname --bulk --control $common" ;;
	status) echo "--control $common" ;;
	"trace live") echo "--control --plain --interval $common" ;;
	"trace record") echo "--output --control --duration $common" ;;
	"trace report") echo "--csv --slowest $common" ;;
	"trace plot") echo "--output $common" ;;
	"trace export") echo "--format --output $common" ;;
	esac
}

_pageferry() {
	local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}

	local command=${COMP_WORDS[1]}

	[ "$command" = trace ] && command="trace ${COMP_WORDS[2]}"
	COMPREPLY=()
	if [ "$COMP_CWORD" -eq 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W "probe serve attach handler criu cloud-hypervisor receive migrate status trace --help --version" -- "$word")
		return
	fi
	if [ "${COMP_WORDS[1]}" = trace ] && [ "$COMP_CWORD" -eq 2 ]; then
		mapfile -t COMPREPLY < <(compgen -W "live record report plot export --help --version" -- "$word")
		return
	fi
	case $previous in
	--file | --snapshot | --socket | --record | --replay | --config | --qmp | --tls | --psk | --control | --trace | --output | -o | report | plot | export)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
		;;
	--pid)
		mapfile -t COMPREPLY < <(cd /proc && compgen -W "$(echo [0-9]*)" -- "$word")
		;;
	--checksum)
		mapfile -t COMPREPLY < <(compgen -W "on off" -- "$word")
		;;
	--header)
		mapfile -t COMPREPLY < <(compgen -W "32 24" -- "$word")
		;;
	--on-lost)
		mapfile -t COMPREPLY < <(compgen -W "wait poison stop" -- "$word")
		;;
	--format)
		mapfile -t COMPREPLY < <(compgen -W "perfetto qemu" -- "$word")
		;;
	--duration | --slowest | --match | --listen | --from | --to | --max-rate | --max-sessions | --max-vms | --user | --bulk | --metrics | --interval | --tls-peer | --tls-hostname) ;;
	*)
		mapfile -t COMPREPLY < <(compgen -W "$(_pageferry_options "$command")" -- "$word")
		;;
	esac
}

complete -F _pageferry pageferry
