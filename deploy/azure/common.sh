# shellcheck shell=bash
# What is set here is used by those who source it.
# shellcheck disable=SC2034
# What provision, status and teardown share: sourced by them. `az` is asked by `azure` only.
set -euo pipefail
export LC_ALL=C.UTF-8 AZURE_CORE_NO_COLOR=1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The keys and inventories of runs; another place for tests, or for a disk that is encrypted.
runs=${TORMENTOR_AZURE_RUNS:-$here/runs}
# Seconds before an answer is asked for again when the way to Azure is cut: once, twice so many.
pause=${TORMENTOR_AZURE_PAUSE:-5}

# Exit statuses; --help says them.
readonly usage_exit=2 half_exit=3 account_exit=4 cut_exit=6 azure_exit=7

# Also when nobody hears it any more: what there is to tidy is tidied then, too.
say() { printf '%s\n' "$*" >&2 2>/dev/null || true; }
die() {
  local status=$1
  shift
  say "$*"
  exit "$status"
}
wrong() { die "$usage_exit" "$* See --help."; }

work=$(mktemp -d)
# Replaced by provision, which has more to tidy.
trap 'rm -rf "$work"' EXIT

# figures ARGS...: the Python part, that needs nothing installed: prices, tables, the inventory.
figures() { "$python" "$here/figures.py" "$@"; }

# Finds a Python with tomllib, and az.
tools() {
  local name
  # GNU's date and grep, flock, Bash 4.3: a Mac has none of them.
  [[ $OSTYPE == linux* ]] || die "$account_exit" \
    "This needs Linux, and here is $OSTYPE; type the same on a machine with Debian or Ubuntu, which may be a virtual one."
  python=
  for name in "$here/../../.venv/bin/python" python3 python3.13 python3.12 python3.11; do
    if "$name" -c 'import tomllib' 2>/dev/null; then python=$name && break; fi
  done
  [ -n "$python" ] || die "$account_exit" "Python 3.11 or newer is needed; type: sudo apt-get install python3"
  command -v az >/dev/null || die "$account_exit" \
    "Azure's command line, az, is not here; how to install it: https://aka.ms/installazurecli (or: pipx install azure-cli)."
  command -v ssh-keygen >/dev/null || die "$account_exit" "ssh is needed; type: sudo apt-get install openssh-client"
}

# Where the errors of az go; whoever works beside others has a file of their own.
errors=$work/errors

# The subscription's id, once account has asked for it: each call names it, so that an 'az account set'
# on another terminal changes nothing here.
account_id=
# What provision wants to be said wherever it ends, from when it has made something.
again=

# azure ARGS...: az's answer on stdout; its status. Tried three times while the way to Azure is cut.
azure() {
  local try status of=()
  # 'az account' asks of the one that is set, and takes no other.
  if [ -n "$account_id" ] && [ "$1" != account ]; then of=(--subscription "$account_id"); fi
  for try in 1 2 3; do
    status=0
    az "$@" "${of[@]}" --only-show-errors 2> "$errors" || status=$?
    [ "$status" != 0 ] || return 0
    [ "$(kind "$errors")" = cut ] || return "$status"
    [ "$try" = 3 ] || sleep "$((try * pause))"
  done
  return "$status"
}

# kind FILE: which kind of failure az's errors tell of. The first that fits.
kind() {
  local file=$1
  fits() { grep -Eqi -- "$1" "$file"; }
  if fits 'az login|AADSTS|refresh token|InteractionRequired'; then echo login
  elif fits 'AuthorizationFailed|does not have authorization|LinkedAuthorizationFailed'; then echo authorization
  elif fits 'Failed to establish a new connection|Max retries exceeded|Connection aborted|Connection reset|RemoteDisconnected|name resolution|Network is unreachable|Read timed out|ConnectTimeout'; then echo cut
  elif fits 'QuotaExceeded|exceeding approved|exceeding quota'; then echo quota
  elif fits 'SkuNotAvailable|size for resource .* is (currently )?not available|not available in location'; then echo size
  elif fits 'AllocationFailed|OverconstrainedAllocation|spot.*evict|SpotVM|insufficient capacity'; then echo capacity
  elif fits 'RequestDisallowedBy|LocationNotAvailable|ReadOnlyDisabledSubscription|ScopeLocked'; then echo policy
  elif fits 'ResourceNotFound|ResourceGroupNotFound'; then echo gone
  elif fits 'unrecognized arguments|expected one argument|misspelled or not recognized|required:'; then echo usage
  else echo other; fi
}

# words FILE: az's own words, on one line of at most 300 characters.
words() { grep -v '^WARNING' "$1" | sed 's/^ERROR: //' | tr '\n' ' ' | cut -c 1-300; }

# because FILE WHERE SIZE: what az's errors mean and what to type, as the end of a sentence.
because() {
  local what
  what=$(kind "$1")
  case $what in
    quota) echo "your subscription's quota of processors in $2 is used up (QuotaExceeded); ask for more in the portal under Quotas, or leave the region out with --without" ;;
    size) echo "Azure does not offer $3 in $2 to your subscription (SkuNotAvailable); say another --size, or leave the region out with --without" ;;
    capacity) echo "Azure has no room for it in $2 just now (AllocationFailed); try again later, say --on-demand, or leave the region out with --without" ;;
    authorization) echo "your account may not do that (AuthorizationFailed); ask the subscription's owner for the role Contributor" ;;
    policy) echo "the subscription forbids it there: $(words "$1"); leave the region out with --without, or ask the subscription's owner" ;;
    cut) echo "the way to Azure is cut; see whether you are online" ;;
    login) echo "you are not logged in to Azure (any more); type: az login" ;;
    *) echo "az says: $(words "$1")" ;;
  esac
}

# no_answer WHAT: ends when az could not tell what we must know.
no_answer() {
  local status=$azure_exit
  case $(kind "$errors") in
    cut) status=$cut_exit ;;
    login | authorization) status=$account_exit ;;
  esac
  die "$status" "Could not $1: $(because "$errors" Azure 'that size'). ${again:+What is made is paid for. }${again:-Then type the same command again; it goes on where it stopped.}"
}

# account: sets $subscription (its name) and $account_id, or ends.
account() {
  local told
  told=$(azure account show --query '[[id, name]]' --output tsv) || no_answer "ask Azure for your subscription"
  IFS=$'\t' read -r account_id subscription <<< "$told"
}

# same_account RUN: ends when the run was made in another subscription than the one az is set to: its
# machines are not there, and are paid for elsewhere.
same_account() {
  local was
  was=$(cat "$runs/$1/subscription" 2>/dev/null) || return 0
  [ "$was" = "$account_id" ] || die "$account_exit" \
    "The run $1 is in the subscription $was, and az is set to another one, $subscription. Type: az account set --subscription $was  and then the same again."
}

# group_of RUN
group_of() { printf 'tormentor-%s' "$1"; }

check_name() {
  [[ $1 =~ ^[a-z][a-z0-9-]{0,39}$ ]] || wrong "A run's name has small letters, digits and hyphens, begins with a letter, and has at most 40; '$1' has not."
}

# load GROUP: writes what Azure knows of a group to $work: group.json ("[]" when there is none),
# machines.json and parts.json.
load() {
  azure group list --query "[?name=='$1']" --output json > "$work/group.json" || no_answer "ask Azure for the run"
  echo '[]' > "$work/machines.json"
  echo '[]' > "$work/parts.json"
  if [ "$(tr -d ' \n' < "$work/group.json")" != '[]' ]; then
    # Also what is no machine: addresses, disks, schedules.
    azure vm list --resource-group "$1" --show-details --output json > "$work/machines.json" \
      || no_answer "ask Azure for the run's machines"
    azure resource list --resource-group "$1" --output json > "$work/parts.json" \
      || no_answer "ask Azure for the run's parts"
  fi
}

# confirmed QUESTION YES: true when the person agrees. YES is 'yes' when they said --yes.
confirmed() {
  local answer
  [ "$2" != yes ] || return 0
  [ -t 0 ] || die "$usage_exit" "Nothing was done: nobody is here to answer. Say --yes to agree without being asked."
  printf '%s Type yes: ' "$1" >&2
  read -r answer || answer=
  [ "$answer" = yes ] || die "$usage_exit" "Nothing was done."
}
