-- Tables, strings, closures, metatables: for the interpreter (lua5.4) and the JIT (luajit).
-- The argument says how often.
local scale = tonumber(arg[1])

local function fannkuch(n)
  local p, q, s, sign, maxflips, sum = {}, {}, {}, 1, 0, 0
  for i = 1, n do p[i] = i; q[i] = i; s[i] = i end
  repeat
    local q0 = p[1]
    if q0 ~= 1 then
      for i = 2, n do q[i] = p[i] end
      local flips = 1
      while true do
        local qq = q[q0]
        if qq == 1 then
          sum = sum + sign * flips
          if flips > maxflips then maxflips = flips end
          break
        end
        q[q0] = q0
        if q0 >= 4 then
          local i, j = 2, q0 - 1
          repeat q[i], q[j] = q[j], q[i]; i = i + 1; j = j - 1 until i >= j
        end
        q0 = qq; flips = flips + 1
      end
    end
    if sign == 1 then
      p[1], p[2] = p[2], p[1]; sign = -1
    else
      p[2], p[3] = p[3], p[2]; sign = 1
      for i = 3, n do
        local sx = s[i]
        if sx ~= 1 then s[i] = sx - 1; break end
        if i == n then return sum, maxflips end
        s[i] = i
        local t = p[1]
        for j = 1, i do p[j] = p[j + 1] end
        p[i + 1] = t
      end
    end
  until false
end

local function mandelbrot(size, limit)
  local inside = 0
  for y = 0, size - 1 do
    for x = 0, size - 1 do
      local cr, ci, zr, zi, n = 2 * x / size - 1.5, 2 * y / size - 1, 0, 0, 0
      while n < limit and zr * zr + zi * zi < 4 do
        zr, zi = zr * zr - zi * zi + cr, 2 * zr * zi + ci
        n = n + 1
      end
      if n == limit then inside = inside + 1 end
    end
  end
  return inside
end

local function strings(seed)
  local words = {}
  for _ = 1, 20000 do
    seed = (seed * 16807) % 2147483647
    local w = "w" .. (seed % 1000)
    words[w] = (words[w] or 0) + 1
  end
  local keys = {}
  for k in pairs(words) do keys[#keys + 1] = k end
  table.sort(keys, function(a, b)
    if words[a] ~= words[b] then return words[a] < words[b] end
    return a < b
  end)
  local text, found = table.concat(keys, " "), 0
  for _ in text:gmatch("w%d7%d*") do found = found + 1 end
  return #keys + #text + found, text:sub(1, 20):upper()
end

for n = 1, scale do
  local sum, flips = fannkuch(7)
  print(sum, flips, mandelbrot(60, 50), strings(n))
end
