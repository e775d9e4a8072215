# Makes the user and the directories of the unit; has a daemon that runs start again. $1: "upgrade" or "first".
settle_in() {
	systemd-sysusers refract.conf
	# As systemd makes them, so that `refract doctor` finds them before the first start.
	install -d -m 0750 -o refract -g refract /var/log/refract /var/lib/refract
	if [ ! -d /run/systemd/system ]; then
		return 0
	fi
	systemctl daemon-reload
	if [ "$1" = upgrade ]; then
		# The bans stay in the kernel meanwhile. If it fails, systemd says why and how to see more.
		systemctl try-restart refract.service || true
	else
		echo "refract: set the ports and the log in /etc/default/refract, then: systemctl enable --now refract"
	fi
}
