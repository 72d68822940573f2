-- Wireshark's dissector of the course's chat protocol: requests are lines, replies are JSON objects with CR LF CR LF.
--
-- Wireshark:  copy this file into the folder that Help > About > Folders calls "Personal Lua Plugins"
-- tshark:     tshark -X lua_script:progjar.lua -r FILE.pcapng
-- Other ports than 8889 and 8890: Preferences > Protocols > PROGJAR, or -o progjar.ports:8889,9000

local chat = Proto("progjar", "Progjar chat")
local fields = {
  request    = ProtoField.bool("progjar.request", "Request"),
  command    = ProtoField.string("progjar.command", "Command"),
  argument   = ProtoField.string("progjar.argument", "Argument"),
  tag        = ProtoField.string("progjar.tag", "Tag"),
  status     = ProtoField.string("progjar.status", "Status"),
  code       = ProtoField.string("progjar.code", "Error code"),
  event      = ProtoField.string("progjar.event", "Event"),
  id         = ProtoField.uint64("progjar.id", "Message id"),
  uid        = ProtoField.string("progjar.uid", "Message uid"),
  from       = ProtoField.string("progjar.from", "From"),
  to         = ProtoField.string("progjar.to", "To"),
  seq        = ProtoField.uint64("progjar.seq", "Outbox number"),
  have       = ProtoField.string("progjar.have", "On disk up to"),
  reply_in   = ProtoField.framenum("progjar.reply_in", "Reply in", base.NONE, frametype.RESPONSE),
  request_in = ProtoField.framenum("progjar.request_in", "Request in", base.NONE, frametype.REQUEST),
  time       = ProtoField.double("progjar.time", "Seconds since the request"),
}
chat.fields = fields
local bare_lf = ProtoExpert.new("progjar.bare_lf", "The line ends in LF, not in CR LF",
                                expert.group.PROTOCOL, expert.severity.NOTE)
local refused = ProtoExpert.new("progjar.error", "ERROR reply", expert.group.RESPONSE_CODE, expert.severity.WARN)
chat.experts = { bare_lf, refused }
chat.prefs.ports = Pref.range("TCP ports", "8889,8890", "The ports of chat servers", 65535)

local parameters = {   -- the words behind each command; `python3 common.py readme` writes them
-- commands
  auth = "USER PASSWORD",
  register = "USER PASSWORD NAMA NEGARA",
  addgroup = "T GROUP",
  joingroup = "T GROUP",
  send = "T USER TEXT…",
  sendfile = "T USER NAME BASE64",
  sendgroup = "T GROUP TEXT…",
  sendgroupfile = "T GROUP NAME BASE64",
  passwd = "T OLD NEW",
  inbox = "T",
  logout = "T",
  info = "[T] [REALM] [AFTER]",
  getfile = "T FILE_ID",
  history = "T USER-or-GROUP [BEFORE_ID] [LIMIT]",
  conversations = "T [BEFORE_ID]",
  read = "T USER-or-GROUP ID",
  search = "T USER-or-GROUP TEXT…",
  groups = "T [REALM] [AFTER]",
  leavegroup = "T GROUP",
  realms = "T",
  subscribe = "T [AFTER_ID]",
  help = "[COMMAND]",
  sendprivaterealm = "T REALM USER TEXT…",
  sendfilerealm = "T REALM USER NAME BASE64",
  sendgrouprealm = "T REALM GROUP-or-USERS TEXT…",
  sendgroupfilerealm = "T REALM GROUP-or-USERS NAME BASE64",
  getrealminbox = "T REALM",
  addrealm = "NAME ADDRESS PORT",
  peer = "NAME EPOCHS NONCE",
  peerproof = "[PROOF]",
  deliver = "STREAM AFTER ITEMS…",
  piece = "SHA256 SIZE OFFSET [CONTENT]",
  ask = "QUESTION…",
  ping = "",
-- /commands
}

local LONGEST = 262144     -- bytes of a frame that are put together; of a longer one the middle is only named
local json = Dissector.get("json")
local stream_number = Field.new("tcp.stream")
local streams              -- stream -> what was asked on it; made in the first pass over the packets
local places, inside       -- place of a frame -> its request; packets in the middle of a long frame: for later passes

function chat.init()
  streams, places, inside = {}, {}, {}
end

-- What is known of the connection that a packet belongs to. The number of the stream is not always there to be asked.
local function stream_of(pinfo)
  local number = stream_number()
  local near, far = tostring(pinfo.src) .. pinfo.src_port, tostring(pinfo.dst) .. pinfo.dst_port
  local key = number and number.value or (near < far and near .. far or far .. near)
  streams[key] = streams[key] or { asked = {}, replies = 0, goes_on = {} }
  return streams[key]
end

-- A request's words behind the command, each as a field with its name.
local function add_arguments(tree, tvb, text, position, names)
  for name in names:gmatch("%S+") do
    local first, last = text:find("%S+", position)
    if not first then break end
    if name:find("…", 1, true) or name == "BASE64" then last = #text end
    local value, plain = text:sub(first, last), name:gsub("[%[%]…]", "")
    local range = tvb(first - 1, last - first + 1)
    tree:add(fields.argument, range, value):set_text(plain .. ": " .. value:sub(1, 200))
    if plain == "USER" or plain == "GROUP" then tree:add(fields.to, range, value) end
    position = last + 1
  end
end

local function add_request(tvb, pinfo, tree, stream, place)
  local raw = tvb:raw()
  local text = raw:gsub("[\r\n]+$", "")
  local branch = tree:add(chat, tvb, "Progjar chat, request: " .. text:sub(1, 60))
  branch:add(fields.request, true):set_generated()
  if not raw:find("\r\n$") then branch:add_proto_expert_info(bare_lf) end
  local first, last, tag = text:find("^%s*@(%S+)%s*")
  if tag then branch:add(fields.tag, tvb(first, #tag), tag) end
  local from, to, word = text:find("(%S+)", tag and last + 1 or 1)
  if not word then from, to, word = 1, 0, "" end
  local command = word:lower()
  if to >= from then branch:add(fields.command, tvb(from - 1, #word), command) end
  add_arguments(branch, tvb, text, to + 1, parameters[command] or "")
  for number in text:gmatch('"seq":%s*(%d+)') do branch:add(fields.seq, UInt64(tonumber(number))) end
  for uid in text:gmatch('"uid":%s*"([^"]*)"') do branch:add(fields.uid, uid) end
  if not pinfo.visited then
    stream.asked[#stream.asked + 1] = { number = pinfo.number, time = pinfo.abs_ts }
    places[place] = stream.asked[#stream.asked]
  end
  local asked = places[place]
  if asked and asked.reply then branch:add(fields.reply_in, asked.reply):set_generated() end
  return command .. " " .. text:sub(to + 2, to + 42)
end

-- Ties a reply to its request: the k-th line of a connection is answered by its k-th object without an event.
local function tie(branch, pinfo, stream, place)
  if not pinfo.visited then
    stream.replies = stream.replies + 1
    places[place] = stream.asked[stream.replies]
    if places[place] then places[place].reply = pinfo.number end
  end
  local asked = places[place]
  if asked then
    branch:add(fields.request_in, asked.number):set_generated()
    branch:add(fields.time, pinfo.abs_ts - asked.time):set_generated()
  end
end

local function add_reply(tvb, pinfo, tree, stream, place)
  local text = tvb:raw()
  local event = text:match('^%s*{%s*"event"%s*:%s*"([^"]*)"')
  local branch = tree:add(chat, tvb, event and "Progjar chat, event: " .. event or "Progjar chat, reply")
  branch:add(fields.request, false):set_generated()
  if event then branch:add(fields.event, event) end
  local function pick(field, pattern, is_number)
    local first, last, value = text:find(pattern)
    if value then branch:add(field, tvb(first - 1, last - first + 1), is_number and UInt64(tonumber(value)) or value) end
    return value
  end
  local status = pick(fields.status, '"status"%s*:%s*"([^"]*)"')
  local code = pick(fields.code, '"code"%s*:%s*"([^"]*)"')
  pick(fields.tag, '"tag"%s*:%s*"([^"]*)"')
  pick(fields.id, '"id"%s*:%s*(%d+)', true)
  pick(fields.uid, '"uid"%s*:%s*"([^"]*)"')
  pick(fields.have, '"have"%s*:%s*([%[%d,%s%]]+)')
  pick(fields.from, '"from"%s*:%s*"([^"]*)"')
  pick(fields.to, '"to"%s*:%s*"([^"]*)"')
  if status == "ERROR" then branch:add_proto_expert_info(refused, code or "ERROR") end
  if not event then tie(branch, pinfo, stream, place) end
  if json and text:find("^%s*{") then json:call(tvb(0, math.max(tvb:len() - 4, 1)):tvb(), pinfo, branch) end
  return event and "event " .. event or (status or "?") .. (code and " " .. code or "")
end

-- The rest of a frame that is longer than LONGEST. What a packet was is kept by its number: packets come again.
local function skip_long(tvb, pinfo, tree, stream, side, stop)
  local key = pinfo.number .. side
  if not pinfo.visited then inside[key] = stream.goes_on[side] end
  if not inside[key] then return 1, nil end
  local first, last = tvb:raw():find(stop, 1, true)
  local size = last or tvb:len()
  if first and not pinfo.visited then stream.goes_on[side] = nil end
  tree:add(chat, tvb(0, size), "Progjar chat, a long frame goes on: " .. size .. " bytes")
  return size + 1, "… " .. size .. " B"
end

function chat.dissector(tvb, pinfo, tree)
  local is_request = pinfo.dst_port == pinfo.match_uint
  local side, stop = is_request and "q" or "r", is_request and "\n" or "\r\n\r\n"
  local raw, stream, infos, count = tvb:raw(), stream_of(pinfo), {}, 0
  local at, info = skip_long(tvb, pinfo, tree, stream, side, stop)
  infos[1] = info
  while at <= #raw do
    local _, last = raw:find(stop, at, true)
    if not last and side == "r" and #raw - at < 4 and raw:find("^[\r\n]+$", at) then
      break                                        -- a blank line between replies: a sign of life
    elseif not last and #raw - at < LONGEST then
      pinfo.desegment_offset = at - 1
      pinfo.desegment_len = DESEGMENT_ONE_MORE_SEGMENT
      break
    elseif not last then
      if not pinfo.visited then stream.goes_on[side] = true end
      last = #raw
    end
    count = count + 1
    local add = is_request and add_request or add_reply
    infos[#infos + 1] = add(tvb(at - 1, last - at + 1):tvb(), pinfo, tree, stream, pinfo.number .. side .. count)
    at = last + 1
  end
  pinfo.cols.protocol = "PROGJAR"
  if #infos > 0 then pinfo.cols.info = (is_request and "→ " or "← ") .. table.concat(infos, " | ") end
  return tvb:len()
end

local ports = "8889,8890"
local tcp_ports = DissectorTable.get("tcp.port")
tcp_ports:add(ports, chat)
tcp_ports:add_for_decode_as(chat)

function chat.prefs_changed()
  if ports ~= "" then tcp_ports:remove(ports, chat) end
  ports = chat.prefs.ports
  if ports ~= "" then tcp_ports:add(ports, chat) end
end
