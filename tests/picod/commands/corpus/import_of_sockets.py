import array, select, signal, socket, ssl
a, b = socket.socketpair()
a.sendall(b"x")
print(b.recv(1), socket.getdefaulttimeout(), array.array("i", [1]), signal.SIGINT, ssl.create_default_context().check_hostname)
