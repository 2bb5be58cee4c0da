package agent

import "sync"

// What a client may send ahead of its answers. Beyond that it is read no
// further until some have been given, as with any slow server.
const (
	maxWaiting      = 64
	maxWaitingBytes = 512 << 10 // exceeded by at most one message
)

// queue holds the requests of one connection that have come and are not
// answered yet. One goroutine puts, one takes.
type queue struct {
	mu       sync.Mutex
	requests [][]byte
	bytes    int
	ended    bool

	some chan struct{} // signals the taker: look again
	room chan struct{} // signals the putter: look again
}

func newQueue() *queue {
	return &queue{some: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// full says that nothing should be put until room signals.
func (q *queue) full() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.fullLocked()
}

func (q *queue) fullLocked() bool {
	return len(q.requests) >= maxWaiting || q.bytes >= maxWaitingBytes
}

func (q *queue) put(request []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.requests = append(q.requests, request)
	q.bytes += len(request)
	signal(q.some)
}

// end says that nothing will be put any more.
func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	signal(q.some)
}

// take waits for a request, and is false when all have been taken and no more
// will come.
func (q *queue) take() ([]byte, bool) {
	for {
		request, ended := q.tryTake()
		if request != nil || ended {
			return request, request != nil
		}
		<-q.some
	}
}

func (q *queue) tryTake() (request []byte, ended bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.requests) == 0 {
		return nil, q.ended
	}
	request, q.requests[0] = q.requests[0], nil
	q.requests = q.requests[1:]
	q.bytes -= len(request)
	if len(q.requests) == 0 {
		q.requests = nil // its array went on to the end of what was ever put
	}
	if !q.fullLocked() {
		signal(q.room)
	}
	return request, false
}

// discard overwrites what nobody has taken: there may be secrets in it. It is
// called when nobody takes or puts any more.
func (q *queue) discard() {
	for _, request := range q.requests {
		clear(request)
	}
	q.requests = nil
}

// signal wakes who waits on c, now or when next it does.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
