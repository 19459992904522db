# What is checked inside the guest, whose kernel is not the host's. Every check is a line
# "ok WHAT" or "FAIL WHAT: WHY"; the last line is "guest: done".
export PATH=/sbin:/bin HOME=/root

ok() { echo "ok $*"; }
fail() { echo "FAIL $*"; }
# check WHAT WANTED FOUND
check() { if [ "$2" = "$3" ]; then ok "$1"; else fail "$1: wanted \"$2\", found \"$3\""; fi; }
# has WHAT TEXT PART
has() { case "$2" in *"$3"*) ok "$1" ;; *) fail "$1: no \"$3\" in: $2" ;; esac; }
# refused WHAT PART COMMAND...: exit status 2 and that text.
refused() {
    what=$1 part=$2; shift 2
    text=$("$@" 2>&1); status=$?
    check "$what: status" 2 $status
    has "$what: message" "$text" "$part"
    gone "$what"
}
# Nothing of a cluster is left. What was killed a moment ago may still be on its way out.
gone() {
    for try in 1 2 3 4 5 6 7 8 9 10; do
        left=$(pidof oslet oslet-runtime oslet-init 2>/dev/null)
        [ -z "$left" ] && break; sleep 0.5
    done
    check "$1: no process" "" "$left"
    check "$1: no control group" "" "$(ls -d /sys/fs/cgroup/oslet /sys/fs/cgroup/*/oslet 2>/dev/null)"
    check "$1: no files" "" "$(ls /run/oslet 2>/dev/null)"
    check "$1: no mount" "" "$(grep -E 'oslet|cfs' /proc/mounts)"
}
inside() { oslet run "$@" 2>&1; }
list() { inside "$1" sed -n "s/^$2_allowed_list:[[:space:]]*//p" /proc/self/status; }
shmem_kb() { sed -n 's/.*Shmem:[[:space:]]*\([0-9]*\) kB/\1/p' /sys/devices/system/node/node$1/meminfo; }

# Nodes 0 to 3 have two CPUs each, the threads of a core; node 4 has memory alone.
echo "guest: $(uname -r), $(cat /sys/devices/system/cpu/online) on $(cat /sys/devices/system/node/online)"
cd /root || exit
node4=$(cat /sys/devices/system/node/node4/cpulist)
check "node 4 has no CPU" "" "$node4"

section() { echo "guest: $* ($(cut -d' ' -f1 /proc/uptime) s)"; }

section four OSlets
text=$(oslet up -d --oslets 4 2>&1); check "up: status" 0 $?
echo "$text"
has "up: says it" "$text" "Cluster is up: main, 4 OSlets"
case "$text" in *"memory policy only"*) fail "up: bound: $text" ;; *) ok "up: bound by cpusets" ;; esac
with_far=0
for i in 0 1 2 3; do
    cpus=$((2 * i))-$((2 * i + 1))
    check "o$i: CPUs" $cpus "$(list o$i Cpus)"
    mems=$(list o$i Mems)
    case "$mems" in
        $i,4 | 3-4) with_far=$((with_far + 1)) ;;
        *) check "o$i: memory nodes" $i "$mems" ;;
    esac
    check "o$i: cpuset" $cpus "$(cat /sys/fs/cgroup/oslet/main/o$i/cpuset.cpus.effective)"
    check "o$i: cannot be left by affinity" $cpus \
        "$(inside o$i taskset ff sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)"
    has "o$i: /ltmp is bound" "$(inside o$i grep ' /ltmp ' /proc/mounts)" "mpol=bind:$i"
    check "o$i: host name" o$i "$(inside o$i hostname)"
    has "o$i: /global" "$(inside o$i cat /global/README)" "the global filesystem of an OSlet cluster"
    has "o$i: few processes" "$(inside o$i sh -c 'echo /proc/[0-9]*')" "/proc/1 "
    # The runtime's own segment lies on its node.
    pid=$(oslet show o$i --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')
    check "o$i: the node of its segment" N$i \
        "$(grep -h "memfd:oslet:$i.0" /proc/$pid/numa_maps | grep -o 'N[0-9]*=' | tr -d = | sort -u)"
done
check "node 4 is in one cpuset" 1 $with_far
before=$(shmem_kb 2)
inside o2 dd if=/dev/zero of=/ltmp/fill bs=1M count=24 >/dev/null
after=$(shmem_kb 2)
[ $((after - before)) -ge 24000 ] && ok "/ltmp of o2 is on node 2" ||
    fail "/ltmp of o2 is on node 2: $before kB before, $after kB after"
check "/ltmp is private" "" "$(inside o1 ls /ltmp)"
inside o0 md5sum /global/README /global/docs/oslets > sums.0
inside o3 md5sum /global/README /global/docs/oslets > sums.3
check "the same bytes" "$(cat sums.0)" "$(cat sums.3)"
has "the transport is told" "$(oslet show o1)" "/dev/fuse"
refused2=$(oslet up -d --image oslet.img --cluster two 2>&1); check "the image is in use: status" 2 $?
has "the image is in use" "$refused2" "in use by process"

section a killed runtime
inside o1 cat /global/README > /dev/null
victim=$(oslet show o3 --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')
kill -9 "$victim"
for try in 1 2 3 4 5 6 7 8 9 10; do
    state=$(oslet ls | awk '$1 == "o3" {print $2}'); [ "$state" = dead ] && break; sleep 0.3
done
check "o3 is dead" dead "$state"
has "o1 reads on" "$(inside o1 cat /global/README)" "the global filesystem"
text=$(oslet run o3 true 2>&1); check "o3 cannot be entered: status" 2 $?
check "no process in o3's group" "" "$(cat /sys/fs/cgroup/oslet/main/o3/cgroup.procs 2>/dev/null)"

section down
has "down" "$(oslet down 2>&1)" "stopped"
gone "down"

section all of it killed
oslet up -d --oslets 2 > /dev/null 2>&1
kill -9 $(pidof oslet oslet-runtime oslet-init)
sleep 0.5
text=$(oslet up -d --oslets 2 2>&1); check "up again: status" 0 $?
has "up again: /global" "$(inside o1 cat /global/README)" "the global filesystem"
check "two OSlets: CPUs" 4-7 "$(list o1 Cpus)"
oslet down > /dev/null; gone "down again"

section huge pages
free_pages() { sed -n 's/HugePages_Free:[[:space:]]*//p' /proc/meminfo; }
total=$(free_pages)
cat > huge.toml <<END
[region]
backing = "hugetlb"
size = "32M"
END
text=$(oslet up -d -c huge.toml --cluster huge 2>&1); check "hugetlb: up" 0 $?
echo "$text" | grep -v "^o. up"
[ "$(free_pages)" -le $((total - 16)) ] && ok "hugetlb: pages are taken" ||
    fail "hugetlb: pages are taken: $total before, $(free_pages) now"
has "hugetlb: /global" "$(inside --cluster huge o1 cat /global/README)" "the global filesystem"
oslet --cluster huge show o0 --json | grep '"pid"' | grep -o '[0-9]*' > pid
check "hugetlb: on its nodes" "" "$(grep -h 'memfd:oslet:0.0' /proc/$(cat pid)/numa_maps |
    grep -o 'N[234]=')"
has "hugetlb: told" "$(oslet --cluster huge show o0)" "true"
oslet --cluster huge down > /dev/null; gone "hugetlb: down"
check "hugetlb: pages are given back" "$total" "$(free_pages)"
sed -i 's/32M/4G/' huge.toml
refused "too few huge pages" "huge.toml:3: region: size: 4.0 GiB is more than the" \
    oslet up -d -c huge.toml --cluster huge

section a region file
cat > file.toml <<END
[region]
backing = "/dev/shm/region"
size = "32M"
END
oslet up -d -c file.toml > /dev/null 2>&1; check "file: up" 0 $?
has "file: there" "$(ls /dev/shm)" "region"
has "file: /global" "$(inside o1 cat /global/README)" "the global filesystem"
mkdir -p two; cp oslet.img two/
text=$(cd two && oslet up -d -c ../file.toml --cluster two 2>&1); check "file in use: status" 2 $?
has "file in use" "$text" "in use by another cluster"
oslet down > /dev/null; gone "file: down"
check "file: removed" "" "$(ls /dev/shm)"
refused "a CPU that is not there" "cpus: 70" sh -c 'printf "[[oslet]]\ncpus = \"70\"\n" > x.toml; oslet up -d -c x.toml'

section CPUs offline and a smaller cpuset
echo 0 > /sys/devices/system/cpu/cpu7/online
oslet up -d --oslets 2 > /dev/null 2>&1; check "offline: up" 0 $?
check "offline: CPUs" 4-6 "$(list o1 Cpus)"
oslet down > /dev/null; gone "offline: down"
echo 1 > /sys/devices/system/cpu/cpu7/online
mkdir /sys/fs/cgroup/part; echo "+cpuset" > /sys/fs/cgroup/cgroup.subtree_control
echo 2-5 > /sys/fs/cgroup/part/cpuset.cpus; echo 1-2 > /sys/fs/cgroup/part/cpuset.mems
text=$(sh -c 'echo $$ > /sys/fs/cgroup/part/cgroup.procs; oslet up -d' 2>&1); check "part: up" 0 $?
check "part: o0" "2-3 1" "$(list o0 Cpus) $(list o0 Mems)"
check "part: o1" "4-5 2" "$(list o1 Cpus) $(list o1 Mems)"
oslet down > /dev/null; gone "part: down"
rmdir /sys/fs/cgroup/part

section an ordinary user
mkdir -p /home/ann; chown ann /home/ann; chmod 666 /dev/fuse
as_ann() { su ann -c "export PATH=/sbin:/bin; cd; $*" 2>&1; }
text=$(as_ann oslet up -d); check "ann: up" 0 $?
has "ann: what is missing" "$text" "affinity and memory policy only"
has "ann: CPUs" "$(as_ann oslet run o1 grep Cpus_allowed_list /proc/self/status)" "4-7"
has "ann: /global" "$(as_ann oslet run o1 cat /global/README)" "the global filesystem"
check "ann: in o0" "ann o0" "$(as_ann oslet run o0 whoami) $(as_ann oslet run o0 hostname)"
as_ann oslet down > /dev/null; gone "ann: down"
chmod 600 /dev/fuse
text=$(as_ann oslet up -d); check "ann without fuse: up" 0 $?
has "ann without fuse: what is missing" "$text" "/global: empty"
as_ann oslet down > /dev/null; gone "ann without fuse: down"
# A group that ann has been given, and ann in one below it: its OSlets are bound by cpusets.
chmod 666 /dev/fuse
given=/sys/fs/cgroup/given; mkdir $given $given/shell
echo "+cpuset" > /sys/fs/cgroup/cgroup.subtree_control
chown ann $given $given/cgroup.procs $given/cgroup.subtree_control $given/shell/cgroup.procs
as_given() { sh -c 'echo $$ > /sys/fs/cgroup/given/shell/cgroup.procs; exec su ann -c "export PATH=/sbin:/bin; cd; $*"' sh "$@" 2>&1; }
text=$(as_given oslet up -d); check "given: up" 0 $?
case "$text" in *"memory policy only"*) fail "given: bound: $text" ;; *) ok "given: bound by cpusets" ;; esac
check "given: in its cpuset" "4-7" "$(cat $given/oslet/main/o1/cpuset.cpus.effective)"
check "given: what runs too" "4-7" \
    "$(as_given oslet run o1 taskset ff sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)"
as_given oslet down > /dev/null; gone "given: down"
rmdir $given/shell $given
echo 0 > /proc/sys/user/max_user_namespaces
refused "ann without namespaces" "user.max_user_namespaces" as_ann oslet up -d

section end
e2fsck -fn oslet.img > fsck.log 2>&1; check "the image is clean" 0 $?
[ -e /tmp/oslet-1000/main ] && fail "files of ann are left"
echo "guest: done"
