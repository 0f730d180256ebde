# shellcheck shell=bash disable=SC2034,SC2154
# What hugepages.sh reserves. Sourced by run.sh, whose words it uses.

setting=etc/sysctl.d/80-kvlane-hugepages.conf
claim "hugepages: --dry-run writes nothing"
fresh host
run bash "$scripts/hugepages.sh" --count 64 --dry-run
expect_code 0
expect "would write" "vm.nr_hugepages = 64" "128 MiB"
holds [ ! -e "$(machine)/$setting" ]

claim "hugepages: reserves now and for the next boot; the second run does nothing"
run bash "$scripts/hugepages.sh" --count 64
expect_code 0
expect "64 pages of 2048 KiB"
holds grep -q '^vm.nr_hugepages = 64$' "$(machine)/$setting"
: >"$cell/host/calls"
run bash "$scripts/hugepages.sh" --count 64
expect_code 0
expect "nothing to do"
holds [ ! -s "$cell/host/calls" ]

claim "hugepages: another program's pages are not taken away without --shrink"
run bash "$scripts/hugepages.sh" --count 16
expect_code 0
holds grep -q '^vm.nr_hugepages = 64$' "$(machine)/$setting"
run bash "$scripts/hugepages.sh" --count 16 --shrink --json
expect_code 0
expect '"total":16'
holds grep -q '^vm.nr_hugepages = 16$' "$(machine)/$setting"

claim "hugepages: a shortage is code 1 and says reboot"
echo 40 >"$cell/host/pages_max"
run bash "$scripts/hugepages.sh" --count 100
expect_code 1
expect "40 of 100 pages" "reboot"

claim "hugepages: warns of a later file that would win; --remove takes ours away, twice is fine"
echo 'vm.nr_hugepages = 3' >"$(machine)/etc/sysctl.d/99-other.conf"
run bash "$scripts/hugepages.sh" --count 30
expect "99-other.conf also sets vm.nr_hugepages"
run bash "$scripts/hugepages.sh" --remove
expect_code 0
holds [ ! -e "$(machine)/$setting" ]
run bash "$scripts/hugepages.sh" --remove
expect_code 0
expect "nothing to do"
run bash "$scripts/hugepages.sh" --count
expect_code 2
