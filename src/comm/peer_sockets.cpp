#include "comm/peer_sockets.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "base/timer.h"

namespace cmoe {
namespace {

constexpr int kAttemptMs = 1500;

// First thing on a connection, echoed by the side that was called.
struct Hello {
  std::array<uint64_t, 2> secret{};
  int32_t from = 0, to = 0;
  bool operator==(const Hello&) const = default;
};

// How a rank can be reached.
struct Contact {
  std::string host, machine;
  int port = 0;
  std::vector<std::string> addresses;
};

// Four or sixteen bytes of an address in network order; none when the text is no address.
std::string address_bytes(const std::string& text) {
  std::array<char, 16> bytes{};
  if (inet_pton(AF_INET, text.c_str(), bytes.data()) == 1) return {bytes.data(), 4};
  if (inet_pton(AF_INET6, text.c_str(), bytes.data()) == 1) return {bytes.data(), 16};
  return {};
}

// Addresses of the interfaces that are up, without loopback and link-local ones.
std::vector<std::string> own_addresses() {
  std::vector<std::string> addresses;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return addresses;
  for (const ifaddrs* at = list; at; at = at->ifa_next) {
    if (!at->ifa_addr || !(at->ifa_flags & IFF_UP) || (at->ifa_flags & IFF_LOOPBACK)) continue;
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (at->ifa_addr->sa_family == AF_INET) {
      const auto* address = reinterpret_cast<const sockaddr_in*>(at->ifa_addr);
      inet_ntop(AF_INET, &address->sin_addr, text.data(), text.size());
    } else if (at->ifa_addr->sa_family == AF_INET6) {
      const auto* address = reinterpret_cast<const sockaddr_in6*>(at->ifa_addr);
      if (IN6_IS_ADDR_LINKLOCAL(&address->sin6_addr)) continue;
      inet_ntop(AF_INET6, &address->sin6_addr, text.data(), text.size());
    }
    if (text[0] != '\0') addresses.emplace_back(text.data());
  }
  freeifaddrs(list);
  return addresses;
}

// Equal on processes that share a loopback interface: containers of one machine may not.
std::string machine_identity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::array<char, 128> space{};
  if (readlink("/proc/self/ns/net", space.data(), space.size() - 1) < 0) space[0] = '\0';
  return boot + space.data();
}

Contact parse_contact(const std::string& text) {
  std::istringstream in(text);
  Contact contact;
  in >> contact.host >> contact.machine >> contact.port;
  for (std::string address; in >> address;) contact.addresses.push_back(address);
  return contact;
}

int common_bits(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return -1;
  for (size_t i = 0; i < a.size(); ++i) {
    const int differing = static_cast<unsigned char>(a[i] ^ b[i]);
    if (differing != 0) return static_cast<int>(8 * i) + __builtin_clz(static_cast<unsigned>(differing)) - 24;
  }
  return static_cast<int>(8 * a.size());
}

// The peer's addresses, the most likely to be reachable first.
std::vector<std::string> candidates(const Contact& peer, const Contact& self) {
  if (peer.machine == self.machine) return {"127.0.0.1", "::1"};
  std::vector<std::pair<int, std::string>> ranked;
  for (const std::string& address : peer.addresses) {
    int best = -1;
    for (const std::string& own : self.addresses)
      best = std::max(best, common_bits(address_bytes(address), address_bytes(own)));
    ranked.emplace_back(-best, address);
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> addresses;
  for (auto& [order, address] : ranked) addresses.push_back(std::move(address));
  return addresses;
}

// A socket that takes calls on all interfaces, both address families where the machine has them.
Descriptor listen_anywhere(int* port) {
  for (const int family : {AF_INET6, AF_INET}) {
    Descriptor listener(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!listener.open()) continue;
    const int off = 0;
    sockaddr_storage address{};
    address.ss_family = static_cast<sa_family_t>(family);
    if (family == AF_INET6) setsockopt(listener.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    socklen_t length = family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
    if (bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) continue;
    if (listen(listener.get(), SOMAXCONN) != 0) continue;
    if (getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) continue;
    *port = ntohs(family == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&address)->sin6_port
                                     : reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
    return listener;
  }
  return Descriptor();
}

bool receive_hello(int fd, Hello* hello) {
  char* next = reinterpret_cast<char*>(hello);
  for (size_t left = sizeof *hello; left > 0;) {
    pollfd ready{.fd = fd, .events = POLLIN, .revents = 0};
    if (poll(&ready, 1, kAttemptMs) <= 0) return false;
    const ssize_t got = recv(fd, next, left, MSG_DONTWAIT);
    if (got <= 0) return false;
    next += got;
    left -= static_cast<size_t>(got);
  }
  return true;
}

bool send_hello(int fd, const Hello& hello) { return send(fd, &hello, sizeof hello, MSG_NOSIGNAL) == sizeof hello; }

// A connection to one address that answered with our own hello; an empty one when it cannot be had.
Descriptor call(const std::string& address, int port, const Hello& hello) {
  const std::string bytes = address_bytes(address);
  sockaddr_storage to{};
  socklen_t length = sizeof(sockaddr_in);
  if (bytes.size() == 4) {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&to);
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<uint16_t>(port));
    std::memcpy(&v4->sin_addr, bytes.data(), 4);
  } else if (bytes.size() == 16) {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&to);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
    std::memcpy(&v6->sin6_addr, bytes.data(), 16);
    length = sizeof(sockaddr_in6);
  } else {
    return Descriptor();
  }
  Descriptor caller(socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!caller.open()) return caller;
  if (connect(caller.get(), reinterpret_cast<const sockaddr*>(&to), length) != 0) {
    if (errno != EINPROGRESS) return Descriptor();
    pollfd ready{.fd = caller.get(), .events = POLLOUT, .revents = 0};
    int error = 0;
    socklen_t size = sizeof error;
    if (poll(&ready, 1, kAttemptMs) <= 0) return Descriptor();
    if (getsockopt(caller.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) return Descriptor();
  }
  Hello answer;
  if (!send_hello(caller.get(), hello) || !receive_hello(caller.get(), &answer) || !(answer == hello)) return Descriptor();
  return caller;
}

// Takes the calls of the higher ranks until all have come or `stop` is set.
void answer_calls(const Descriptor& listener, const Hello& own, std::vector<Descriptor>& sockets,
                  const std::atomic<bool>& stop) {
  const auto ranks = static_cast<int>(sockets.size());
  for (int missing = ranks - 1 - own.to; missing > 0 && !stop;) {
    pollfd ready{.fd = listener.get(), .events = POLLIN, .revents = 0};
    if (poll(&ready, 1, 50) <= 0) continue;
    Descriptor called(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    Hello hello;
    if (!called.open() || !receive_hello(called.get(), &hello)) continue;
    if (hello.secret != own.secret || hello.to != own.to || hello.from <= own.to || hello.from >= ranks) continue;
    if (!send_hello(called.get(), hello)) continue;
    Descriptor& place = sockets[static_cast<size_t>(hello.from)];
    missing -= place.open() ? 0 : 1;  // a caller that gave up on the answer calls again
    place = std::move(called);
  }
}

}  // namespace

void Descriptor::reset() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

PeerSockets connect_peers(Communicator& comm, double patience_s) {
  const int rank = comm.rank();
  Hello own{.to = rank};
  std::random_device random;
  for (uint64_t& word : own.secret) word = (uint64_t{random()} << 32) | random();
  comm.broadcast(std::span<uint64_t>(own.secret), 0);

  Contact self{.host = host_name(), .machine = machine_identity(), .addresses = own_addresses()};
  const Descriptor listener = listen_anywhere(&self.port);
  const std::vector<std::string> contacts =
      comm.all_gather_strings(fmt::format("{} {} {} {}", self.host, self.machine, self.port, fmt::join(self.addresses, " ")));

  PeerSockets result;
  result.sockets.resize(contacts.size());
  Timer timer;
  std::atomic<bool> stop{false};
  // Calls are answered while this rank makes its own; the two sides fill different places.
  std::thread answering([&] { answer_calls(listener, own, result.sockets, stop); });
  for (int peer = 0; peer < comm.size(); ++peer) {
    const Contact contact = parse_contact(contacts[static_cast<size_t>(peer)]);
    result.hosts.push_back(contact.host);
    if (peer >= rank) continue;
    Descriptor& place = result.sockets[static_cast<size_t>(peer)];
    const Hello hello{.secret = own.secret, .from = rank, .to = peer};
    for (const std::string& address : candidates(contact, self)) {
      if (timer.seconds() > patience_s || contact.port == 0) break;
      place = call(address, contact.port, hello);
      if (place.open()) break;
    }
    if (!place.open() && result.problem.empty()) {
      result.problem = fmt::format("rank {} on host {} cannot connect to rank {} on host {} (port {} at {})", rank, self.host,
                                   peer, contact.host, contact.port, fmt::join(contact.addresses, ", "));
    }
  }
  // All calls have been made, answered or not, when all ranks are here.
  comm.barrier();
  stop = true;
  answering.join();
  for (int peer = 0; peer < comm.size(); ++peer) {
    const Descriptor& socket = result.sockets[static_cast<size_t>(peer)];
    if (peer == rank) continue;
    if (!socket.open()) {
      if (result.problem.empty())
        result.problem = fmt::format("rank {} on host {} was not reached by rank {}", rank, self.host, peer);
      continue;
    }
    fcntl(socket.get(), F_SETFL, fcntl(socket.get(), F_GETFL) | O_NONBLOCK);
    const int on = 1;
    setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  return result;
}

}  // namespace cmoe
