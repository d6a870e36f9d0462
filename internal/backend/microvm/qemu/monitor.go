package qemu

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// maxMessage is more than any message of QEMU's monitor that is used here.
	maxMessage = 64 << 10

	// monitorTime bounds one command of the monitor.
	monitorTime = 10 * time.Second
)

// A monitor is a connection to QEMU's machine protocol (docs/interop/qmp-spec).
// QEMU runs a hostile guest: what it says is bounded and parsed strictly enough
// to be ignored.
type monitor struct {
	conn    net.Conn
	answers chan answer // of commands, in order
	ended   chan struct{}

	mu sync.Mutex // one command at a time

	// guest is whether the guest itself ended the machine, by a shut-down or a
	// reset. It may be read once ended is closed.
	guest bool
	err   error // why ended was closed; readable then
}

type answer struct {
	Error *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

// message is one of QEMU's: a greeting, an event or an answer.
type message struct {
	QMP   *json.RawMessage `json:"QMP"`
	Event string           `json:"event"`
	Data  struct {
		Guest bool `json:"guest"`
	} `json:"data"`
	answer
}

// greet waits for QEMU's greeting on conn and leaves the negotiation mode. It
// returns an error if QEMU ends first.
func greet(conn net.Conn) (*monitor, error) {
	m := &monitor{conn: conn, answers: make(chan answer, 1), ended: make(chan struct{})}
	r := bufio.NewReaderSize(conn, maxMessage)
	// QEMU greets once the machine is built, which on a busy host takes a while.
	conn.SetReadDeadline(time.Now().Add(monitorTime))
	first, err := readMessage(r)
	if err == nil && first.QMP == nil {
		err = errors.New("its first message is no greeting")
	}
	if err != nil {
		return nil, err
	}
	conn.SetReadDeadline(time.Time{})
	go m.read(r)
	return m, m.execute("qmp_capabilities")
}

func readMessage(r *bufio.Reader) (message, error) {
	var m message
	line, err := r.ReadSlice('\n')
	if err != nil {
		return m, err // bufio.ErrBufferFull for one that is too long
	}
	return m, json.Unmarshal(line, &m)
}

// read owns the reading side until QEMU hangs up.
func (m *monitor) read(r *bufio.Reader) {
	defer close(m.ended)
	for {
		msg, err := readMessage(r)
		switch {
		case err != nil:
			m.err = err
			return
		case msg.Event == "SHUTDOWN":
			m.guest = msg.Data.Guest
		case msg.Event != "":
		default:
			select {
			case m.answers <- msg.answer:
			default: // an answer that nobody asked for
			}
		}
	}
}

// execute runs a command that has no arguments and whose result says nothing.
func (m *monitor) execute(command string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := json.Marshal(map[string]string{"execute": command})
	if err != nil {
		return err
	}
	m.conn.SetWriteDeadline(time.Now().Add(monitorTime))
	if _, err := m.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("tell QEMU %s: %w", command, err)
	}
	late := time.NewTimer(monitorTime)
	defer late.Stop()
	select {
	case a := <-m.answers:
		if a.Error != nil {
			return fmt.Errorf("QEMU refuses %s: %.500s", command, a.Error.Desc)
		}
		return nil
	case <-m.ended:
		return fmt.Errorf("QEMU ended at %s", command)
	case <-late.C:
		m.conn.Close() // a late answer must not be the next command's
		return fmt.Errorf("QEMU does not answer %s", command)
	}
}
