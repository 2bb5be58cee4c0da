package logind

import (
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
)

// systemBus is where the D-Bus specification has the system bus.
const systemBus = "unix:path=/run/dbus/system_bus_socket"

// parseAddress returns the unix sockets in a list of server addresses (D-Bus
// specification, "Server Addresses"): those that can be connected to as they
// are. Other kinds in the list are passed over.
func parseAddress(list string) (places []string, err error) {
	if list == "" {
		list = systemBus
	}
	for entry := range strings.SplitSeq(list, ";") {
		kind, rest, _ := strings.Cut(entry, ":")
		if kind != "unix" {
			continue
		}
		name, err := socketName(rest)
		if err != nil {
			return nil, fmt.Errorf("the bus address %q: %w", entry, err)
		}
		if name != "" {
			places = append(places, name)
		}
	}
	if len(places) == 0 {
		return nil, fmt.Errorf("the bus address %q names no unix socket", list)
	}
	return places, nil
}

// socketName finds the socket in the keys and values of an address, in Go's
// notation for abstract ones. An address without one has an empty name.
func socketName(keys string) (string, error) {
	for pair := range strings.SplitSeq(keys, ",") {
		key, value, _ := strings.Cut(pair, "=")
		if key != "path" && key != "abstract" {
			continue
		}
		value, err := dbus.UnescapeBusAddressValue(value)
		if err != nil || value == "" {
			return "", fmt.Errorf("%s= is empty or badly escaped", key)
		}
		if key == "abstract" {
			value = "@" + value
		}
		return value, nil
	}
	return "", nil
}
