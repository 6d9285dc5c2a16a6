# Processes of servers: started, found and ended. Sourced by scripts that set dir, and define die.
# shellcheck shell=bash

# A closed standard error must not stop the script halfway.
say() { printf '%s\n' "$*" >&2 || true; }

declare -A launched=() # process ids that this call has started

# In a new session and without the caller's descriptors: Ctrl-C in the caller's terminal must not reach a server, and a
# caller that reads our output to its end must not wait for one.
detached() { # NAME COMMAND...
  (
    cd /
    exec </dev/null >>"$dir/$1.log" 2>&1
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      ((fd <= 2)) || exec {fd}>&-
    done
    exec setsid "${@:2}"
  ) &
  launched[$1]=$!
  echo "$!" >"$dir/$1.pid"
  disown "$!" # bash would report its end
}

process_tree() { # PID: it and all the processes below it
  cat /proc/[0-9]*/status 2>/dev/null | awk -v root="$1" '
    /^Pid:/ { pid = $2 }
    /^PPid:/ { parent[pid] = $2 }
    END {
      tree[root]
      do { grown = 0
        for (pid in parent) if (parent[pid] in tree && !(pid in tree)) { tree[pid]; grown = 1 }
      } while (grown)
      for (pid in tree) print pid
    }'
}

# A zombie has ended, too: its parent may never reap it.
ended() { ! grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status"; }

await_end() { # SECONDS PID...
  local deadline=$((SECONDS + $1)) pid
  for pid in "${@:2}"; do
    until ended "$pid"; do
      ((SECONDS < deadline)) || return 1
      sleep 0.05 || true
    done
  done
}

kill_tree() { # PID; halted first so that it can neither fork nor clean up meanwhile
  local pids
  kill -STOP "$1" 2>/dev/null || return 0
  mapfile -t pids < <(process_tree "$1")
  kill -KILL "${pids[@]}" 2>/dev/null || true
  await_end 10 "${pids[@]}" || say "services: process $1 does not end"
}

# PostgreSQL refuses to run as root; it then runs as the first of these accounts that exists.
find_postgres_account() {
  local account
  as_postgres=()
  ((EUID == 0)) || return 0
  for account in postgres nobody ''; do ! id -u -- "$account" >/dev/null 2>&1 || break; done
  [[ -n $account ]] || die 'PostgreSQL does not run as root, and there is neither an account "postgres" nor "nobody"'
  if type -P setpriv >/dev/null; then
    as_postgres=(setpriv "--reuid=$account" "--regid=$(id -g "$account")" --init-groups --)
  elif type -P runuser >/dev/null; then
    as_postgres=(runuser -u "$account" --)
  else
    # shellcheck disable=SC2016
    as_postgres=(su -s /bin/sh "$account" -c 'exec "$0" "$@"' --)
  fi
  as_postgres+=(env -i "PATH=$PATH" LC_ALL=C)
}
