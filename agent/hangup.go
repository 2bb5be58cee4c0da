package agent

import (
	"net"
	"syscall"
	"time"
)

// awaitRoom waits until a request is taken. The client is not read meanwhile, so an
// end of file does not show that it hangs up, and its prompt would stay open
// forever; it is watched for that in a different way. What it sent before is still
// read and answered then.
func (c *conn) awaitRoom() error {
	c.setReadDeadline(time.Time{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if hungUp(c.nc) {
			c.hangUp()
		}
	}()
	var err error
	select {
	case <-c.room:
	case <-c.drained:
	case <-c.closed:
		err = net.ErrClosed
	}
	c.setReadDeadline(time.Unix(1, 0)) // ends the watch
	<-watched
	return err
}

// hungUp waits until the other side has shut down its sending, even if what it sent
// is not read yet. It returns false when the connection's read deadline passes
// before, and at once for a connection that has no descriptor.
func hungUp(nc net.Conn) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	raw.Read(func(fd uintptr) bool {
		gone = endAhead(int(fd))
		return gone // false waits for the next thing to happen to fd
	})
	return gone
}

// endAhead reports whether an end of file or an error follows what can be read
// from fd, without reading. recv(2) cannot peek behind the data; epoll(7) can.
func endAhead(fd int) bool {
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	defer syscall.Close(ep)
	want := syscall.EpollEvent{Events: syscall.EPOLLRDHUP}
	if err := syscall.EpollCtl(ep, syscall.EPOLL_CTL_ADD, fd, &want); err != nil {
		return false
	}
	events := make([]syscall.EpollEvent, 1)
	n, err := syscall.EpollWait(ep, events, 0)
	return err == nil && n > 0
}
