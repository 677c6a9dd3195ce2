"""Bash contexts: each run is a bash of its own that begins where the last one ended.

Not one long-lived shell: `exit`, `set -e` or a killed command would take it away with all its state. So a run reads
the state that the last one wrote at its end (folder, variables, functions, aliases, options) and a run that is killed
leaves the state as it was. Background jobs keep running; `jobs` and `fg` do not know those of earlier runs.
"""

from __future__ import annotations

# $1 state, $2 code. Variables that bash makes itself, and our own, are not carried over. Options come last: with
# `set -e` in force, reading the rest of the state could end the shell.
SCRIPT = r"""
__wg_state=$1 __wg_code=$2
shift 2
shopt -s expand_aliases
[ -r "$__wg_state" ] && . "$__wg_state" 2>/dev/null
__wg_save() {
  local __wg_status=$? __wg_name
  trap - EXIT
  {
    set +o; shopt -p
  } > "$__wg_state.options"
  set +eu
  {
    for __wg_name in $(compgen -v); do
      case $__wg_name in
        __wg_*|BASH*|COMP_*|DIRSTACK|EPOCH*|EUID|FUNCNAME|GROUPS|HISTCMD|LINENO|OPTIND|OPTARG|PIPESTATUS|PPID|PWD) ;;
        RANDOM|SECONDS|SHELLOPTS|SHLVL|SRANDOM|UID|_) ;;
        *) declare -p "$__wg_name" ;;
      esac
    done
    compgen -A function | while read -r __wg_name; do
      case $__wg_name in __wg_*) ;; *) declare -f "$__wg_name" ;; esac
    done
    alias -p
    printf 'cd -- %q\n' "$PWD"
    cat "$__wg_state.options"
  } > "$__wg_state.new" 2>/dev/null && mv -f "$__wg_state.new" "$__wg_state"
  rm -f "$__wg_state.options"
  exit "$__wg_status"
}
trap __wg_save EXIT
. "$__wg_code"
"""
