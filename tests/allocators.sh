#!/bin/sh
# Runs a few scenarios of the bench with our programs on each of three allocators, in turn: make bench-allocators
# Needs programs without an allocator of their own (--no-default-features) in the first argument's folder, the bench
# in the second, and Debian's libjemalloc2 and libmimalloc2.0. One line for each run: scenario, allocator, figures.
set -eu

programs=$1
bench=$2
rounds=${ROUNDS:-5}
libraries=/usr/lib/$(uname -m)-linux-gnu
jemalloc=$libraries/libjemalloc.so.2
mimalloc=$libraries/libmimalloc.so.2

for library in "$jemalloc" "$mimalloc"; do
    if [ ! -e "$library" ]; then
        echo "allocators: no $library: apt-get install libjemalloc2 libmimalloc2.0" >&2
        exit 1
    fi
done

place=$(mktemp -d)
trap 'rm -r "$place"' EXIT

# program ALLOCATOR NAME ENVIRONMENT...: what the bench starts instead of the program.
program() {
    folder=$place/$1
    name=$2
    shift 2
    mkdir -p "$folder"
    printf '#!/bin/sh\nexec env %s "%s/%s" "$@"\n' "$*" "$programs" "$name" >"$folder/$name"
    chmod +x "$folder/$name"
}

for name in causeway-node causeway-proxy; do
    program glibc $name
    program mimalloc $name "LD_PRELOAD=$mimalloc"
done
# With the settings that the programs have.
program jemalloc causeway-node "LD_PRELOAD=$jemalloc" MALLOC_CONF=background_thread:true
program jemalloc causeway-proxy "LD_PRELOAD=$jemalloc" MALLOC_CONF=lg_tcache_max:16

# measure SCENARIO CONTENDER ROUNDS
measure() {
    for _ in $(seq "$3"); do
        for allocator in glibc jemalloc mimalloc; do
            CAUSEWAY_BIN=$place/$allocator "$bench" --scenario "$1" --contender "$2" --rounds 1 \
                --output "$place/out.json" 2>/dev/null | sed -n "s/^ *$2  *\([^ (]\)/$1 $allocator: \1/p"
        done
    done
}

measure node-idle causeway-node 1
measure node-channel causeway-channels 1
measure edge-idle causeway-proxy 1
measure edge-idle-tls causeway-proxy 1
measure fanout-heavy causeway-node "$rounds"
measure edge-connect causeway-proxy "$rounds"
