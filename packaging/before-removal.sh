# Ends the daemon, and takes its rules and sets out of the kernel.
take_back() {
	namespace=
	if [ -d /run/systemd/system ]; then
		namespace=$(systemctl show --property=NetworkNamespacePath --value refract.service) || true
		systemctl disable --now --quiet refract.service || true
	fi
	iptables=$(sed -n 's/^REFRACT_IPTABLES=//p' /etc/default/refract 2>/dev/null | tail -n 1 | tr -d "\"'")
	set -- /opt/refract/refract uninstall ${iptables:+"--iptables=$iptables"}
	if [ -n "$namespace" ]; then
		set -- nsenter --net="$namespace" "$@"
	fi
	# A package that cannot be removed helps nobody; what is wrong was said.
	"$@" || echo "refract: its rules and sets may still be in the kernel" >&2
}
