# shellcheck shell=bash disable=SC2034,SC2154
# What all scripts and the unit keep to. Sourced by run.sh, whose words it uses.

fresh host
claim "every script has --help and --dry-run, and refuses an unknown option"
for script in preflight hugepages deploy smoke rollback collect; do
    run bash "$scripts/$script.sh" --help
    expect_code 0
    expect --dry-run --json
    run bash "$scripts/$script.sh" --no-such-option
    case "$script" in preflight) expect_code 64 ;; *) expect_code 2 ;; esac
done

claim "the unit says what it has to: no memory limit, after openibd, backoff, a watchdog and who may feed it"
cp "$scripts/systemd/dpu-app.service" "$out"
expect LimitMEMLOCK=infinity openibd.service Restart=on-failure RestartSec= StartLimitBurst= RestartPreventExitStatus=2 NoNewPrivileges=yes Type=notify WatchdogSec= NotifyAccess=main
holds [ "$(grep -cE '^(PrivateDevices=yes|ProtectClock=yes)' "$out")" = 0 ]

if command -v shellcheck >/dev/null; then
    claim "shellcheck has nothing to say"
    code=0
    shellcheck "$scripts"/{preflight,hugepages,deploy,smoke,rollback,collect,check-headers}.sh "$scripts"/bring-up/*.sh "$here"/run.sh "$here"/claims/* "$here"/fakes/* >"$out" 2>&1 || code=$?
    expect_code 0
fi
