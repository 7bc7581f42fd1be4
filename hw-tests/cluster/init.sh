#!/busybox sh
# The first program of a guest: makes it ready, then becomes the agent.
# The kernel's command line says which guest this is: sojourn.name=guest1 and so on.

export PATH=/run/busybox:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
b=/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
$b mount -t tmpfs tmpfs /run
$b mount -t tmpfs -o mode=1777 tmpfs /tmp
$b mkdir -p /dev/shm /dev/pts /run/busybox /run/agent
$b mount -t tmpfs tmpfs /dev/shm
$b mount -t devpts devpts /dev/pts
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b --install -s /run/busybox

for module in /modules/*.ko; do
    insmod "$module" || echo "sojourn: could not load $module"
done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose host /host ||
    echo "sojourn: could not mount the host's root"

for word in $(cat /proc/cmdline); do
    case $word in sojourn.*=*) eval "${word#sojourn.}" ;; esac
done
hostname "$name"
ip link set lo up
place=0
for address in $(echo "$addresses" | tr , ' '); do
    interface=eth$place device=rxe$place
    # Nobody else is on the wire: no waiting for duplicates of the link-local address.
    echo 0 >/proc/sys/net/ipv6/conf/$interface/accept_dad
    ip link set $interface mtu "$mtu" up
    ip address add "$address/24" dev $interface
    # The host's tool, not that of busybox, which has no rdma links.
    /usr/bin/rdma link add $device type rxe netdev $interface ||
        echo "sojourn: could not add $device"
    # A device's GIDs follow its addresses by a few moments: index 1 is that of the IPv4 address.
    for _ in $(seq 100); do
        grep -q '0000:ffff:0a' /sys/class/infiniband/$device/ports/1/gids/1 2>/dev/null && break
        sleep 0.1
    done
    place=$((place + 1))
done

# Waiting for its children, the first program also reaps the orphans of others.
setsid sh /agent &
while true; do sleep 1; done
