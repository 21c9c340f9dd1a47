#!/bin/bash
# Slurm prolog: the models that a job names are warm before it starts.
#
#   slurm.conf:  Prolog=/etc/slurm/prolog.d/*    PrologFlags=Alloc
#   a job:       sbatch --comment='craftcache:facebook/musicgen-large,org/name@rev' job.sh
#
# A prolog that fails drains the node. No model is worth a node, so this one always succeeds: what
# is not warm by then the job fetches itself, at its first load. A comment is data from a user; it
# is split at commas and handed on as arguments, never evaluated.

CRAFTCACHE=${CRAFTCACHE:-/opt/craftcache/bin/craftcache}
SECONDS_AT_MOST=${CRAFTCACHE_PROLOG_SECONDS:-600} # below PrologEpilogTimeout

comment=${SLURM_JOB_COMMENT:-}
case $comment in
craftcache:*) IFS=, read -r -a models <<<"${comment#craftcache:}" ;;
*) exit 0 ;;
esac

timeout --kill-after=5 $((SECONDS_AT_MOST + 10)) \
    "$CRAFTCACHE" warm --timeout "$SECONDS_AT_MOST" -- "${models[@]}" </dev/null 2>&1 |
    logger --tag craftcache-prolog
exit 0
