#!/busybox sh
# Runs commands for the host, any number at a time.
#
# Host to guest, a line for each command:   ID BASE64-OF-A-SHELL-SCRIPT
# Guest to host, a line when one has ended: ID STATUS LEFTOVERS BASE64-OF-ITS-OUTPUT
#
# Each command runs in a control group of its own, /sys/fs/cgroup/ID. The host ends one that
# outlasts its deadline by writing to its cgroup.kill. LEFTOVERS counts the processes that a
# command left behind; they are killed. Of a long output the last MiB is sent.

# The number in the device's name depends on what else the machine has.
exec 3<>"/dev/$(basename /sys/class/virtio-ports/*)"
# The home is the host's, and cannot be written.
export HOME=/root XDG_CACHE_HOME=/run/cache LANG=C.UTF-8
# Commands find the host's programs first, the agent busybox's: they start sooner.
command_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/busybox

run() {
    group=/sys/fs/cgroup/$1
    script=/run/agent/$1
    mkdir "$group"
    echo "$2" | base64 -d >"$script"
    setsid sh -c 'echo 0 >"$0/cgroup.procs" && PATH=$2 && exec /busybox sh "$1"' \
        "$group" "$script" "$command_path" </dev/null >"$script.out" 2>&1 3>&-
    status=$?
    leftovers=$(wc -l <"$group/cgroup.procs")
    echo 1 >"$group/cgroup.kill"
    output=$(tail -c 1048576 "$script.out" | base64 -w 0)
    (
        # /usr/bin/flock is util-linux's, from the host's root. One line at a time.
        /usr/bin/flock 9
        echo "$1 $status $leftovers $output" >&3
    ) 9>/run/agent.lock
    rm -f "$script" "$script.out"
    until rmdir "$group" 2>/dev/null; do sleep 0.1; done
}

echo "ready 0 0 $(uname -r | base64 -w 0)" >&3
while read -r id script <&3; do
    run "$id" "$script" &
done
