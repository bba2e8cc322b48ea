#!/bin/sh
# timed.sh NAME COMMAND...: runs the command, and says how many seconds it took.
name=$1
shift
start=$(date +%s)
"$@"
code=$?
echo "time: $name $(($(date +%s) - start)) s"
exit $code
