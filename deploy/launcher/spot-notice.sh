#!/bin/sh
# Waits for the cloud's notice that this machine will be taken back, and has Ray drain the node: no new work comes, and what is
# under way is finished if there is time. Start it beside `ray start` on every spot machine:
#   RAY_ADDRESS=10.0.0.1:6379 nohup sh spot-notice.sh >spot-notice.log 2>&1 </dev/null &
#
# NOTICE_URL        where the cloud says it; that of Amazon by default. Google: http://169.254.169.254/computeMetadata/v1/instance/preempted
# NOTICE_PATTERN    what the answer contains when the time has come (a basic regular expression). Google: TRUE
# NOTICE_HEADER     sent along. Google: Metadata-Flavor: Google
# NOTICE_TOKEN_URL  where a session token is fetched first, as Amazon's IMDSv2 demands; empty for none
# NOTICE_SECONDS    between the notice and the end, less a margin
# POLL_SECONDS      between two looks
# RAY_ADDRESS       of the cluster, host:port; RAY_AUTH_MODE and the token as for `ray start`
# RAY_NODE_ID       of this node; by default that of the only worker node that runs on this machine
set -eu

url=${NOTICE_URL:-http://169.254.169.254/latest/meta-data/spot/instance-action}
pattern=${NOTICE_PATTERN:-'"action"'}
header=${NOTICE_HEADER:-}
token_url=${NOTICE_TOKEN_URL-http://169.254.169.254/latest/api/token}
seconds=${NOTICE_SECONDS:-110}
poll=${POLL_SECONDS:-5}
: "${RAY_ADDRESS:?is missing: the address of the cluster, host:port}"

say() {
  printf '%s spot-notice: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$1" >&2
}

# Prints what the cloud says; fails while it has nothing to say (404). Tokens go through a pipe: arguments can be read by all.
notice() {
  fields=$header
  if [ -n "$token_url" ]; then
    token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$token_url") || return 1
    fields="X-aws-ec2-metadata-token: $token"
  fi
  printf '%s\n' "$fields" | curl -sf -m 2 -H @- "$url"
}

# Prints the ids of the worker nodes of the cluster on this machine. Asking Ray for them would start a Ray of its own.
nodes() {
  for file in /proc/[0-9]*/cmdline; do
    { tr '\0' '\n' <"$file"; } 2>/dev/null | awk -v port="${RAY_ADDRESS##*:}" '
      NR == 1 && $0 !~ /\/raylet$/ { exit }
      $0 == "--head" { head = 1 }
      index($0, "--node_id=") == 1 { node = substr($0, 11) }
      index($0, "--gcs-address=") == 1 { sub(/.*:/, ""); same = $0 == port }
      END { if (node != "" && same && !head) print node }' || :
  done
}

drain() {
  node=${RAY_NODE_ID:-$(nodes)}
  case $node in
    '') say "no worker node of $RAY_ADDRESS runs here"; return 1 ;;
    *[!0-9a-f]*) say 'several worker nodes run here: set RAY_NODE_ID'; return 1 ;;
  esac
  say "draining node $node, which has $seconds s"
  ray drain-node --address "$RAY_ADDRESS" --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message 'the machine is taken back' --deadline-remaining-seconds "$seconds" >&2
}

say "watching $url"
until notice | grep -q -e "$pattern"; do
  sleep "$poll"
done
say 'the machine will be taken back'
until drain; do
  sleep 1
done
say 'the node drains'
